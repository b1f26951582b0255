package testcloud

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
)

// gceBase is the base of the links in answers, whatever the address of the server.
const gceBase = "https://www.googleapis.com/compute/v1/"

// GCENetwork is the VPC network of the instance, and its table.
const GCENetwork = "projects/my-project/global/networks/default"

// NewGCE returns a project my-project with an instance node-1 in zone zone-a, which may forward.
// Its address is 172.31.0.1 in network default. The token is gce-token.
func NewGCE() *Cloud {
	c := newCloud(gceAPI, gceMetadata, map[string]string{
		"instance/name": "node-1", "project/project-id": "my-project",
		"instance/zone":                         "projects/123456/zones/zone-a",
		"instance/network-interfaces/":          "0/\n",
		"instance/network-interfaces/0/network": "projects/123456/networks/default",
		"instance/network-interfaces/0/ip":      "172.31.0.1",
	})
	c.SetGCEToken("gce-token")
	c.Set("canIpForward", "true")
	c.AddTable(GCENetwork)
	c.AddRoute(GCENetwork, Route{Dst: netip.MustParsePrefix("0.0.0.0/0"), ID: "default-route", Target: "default-internet-gateway"})
	return c
}

// SetGCEToken makes a token that of the instance's service account, and valid.
func (c *Cloud) SetGCEToken(token string) {
	c.SetKey(token, Key{Secret: token})
	c.SetItem("instance/service-accounts/default/token",
		fmt.Sprintf(`{"access_token":%q,"expires_in":3599,"token_type":"Bearer"}`, token))
}

// gceMetadata is the metadata server.
func gceMetadata(c *Cloud) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Metadata-Flavor", "Google")
		if r.Header.Get("Metadata-Flavor") != "Google" {
			c.problem("metadata %s without Metadata-Flavor", r.URL.Path)
			w.WriteHeader(http.StatusForbidden)
			return
		}
		c.item(w, r, "/computeMetadata/v1/")
	}
}

type gceRoute struct {
	Kind      string   `json:"kind"`
	Name      string   `json:"name"`
	Network   string   `json:"network"`
	DestRange string   `json:"destRange"`
	Priority  int      `json:"priority"`
	Tags      []string `json:"tags,omitempty"`
	Instance  string   `json:"nextHopInstance,omitempty"`
	Gateway   string   `json:"nextHopGateway,omitempty"`
	Warnings  []any    `json:"warnings,omitempty"`
}

// gceAPI is the Compute Engine API.
func gceAPI(c *Cloud) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		defer c.mu.Unlock()
		body, _ := io.ReadAll(r.Body)
		call, name := gceCall(r)
		f, failed := c.record(call, gceParameters(r, name, body))
		if failed && c.fail(w, r, f) {
			return
		}
		w.Header().Set("Content-Type", "application/json; charset=UTF-8")
		token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if _, ok := c.keys[token]; !failed && (!ok || token == "") {
			f = Failure{Status: 401, Code: "authError", Message: "Request had invalid authentication credentials."}
		}
		if f.Code == "" {
			f = c.gceAct(w, call, name, body, r)
		}
		if f.Code != "" {
			w.WriteHeader(f.Status)
			json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{
				"code": f.Status, "message": f.Message,
				"errors": []any{map[string]any{"message": f.Message, "domain": "global", "reason": f.Code}},
			}})
		}
	}
}

// gceParameters returns the parameters of a request. Those of a body are sorted.
func gceParameters(r *http.Request, name string, body []byte) string {
	var v map[string]any
	if json.Unmarshal(body, &v) == nil {
		body, _ = json.Marshal(v)
	}
	query, _ := url.QueryUnescape(r.URL.RawQuery)
	return strings.Join(strings.Fields(name+" "+query+" "+string(body)), " ")
}

// gceCall returns the name of a call, as the API's reference has it, and the resource.
func gceCall(r *http.Request) (call, name string) {
	name, ok := strings.CutPrefix(r.URL.Path, "/projects/my-project/")
	if !ok {
		return "project " + r.URL.Path, ""
	}
	switch parts := strings.Split(name, "/"); {
	case name == "global/routes" && r.Method == http.MethodGet:
		return "routes.list", ""
	case name == "global/routes" && r.Method == http.MethodPost:
		return "routes.insert", ""
	case strings.HasPrefix(name, "global/routes/") && r.Method == http.MethodGet:
		return "routes.get", path.Base(name)
	case strings.HasPrefix(name, "global/routes/") && r.Method == http.MethodDelete:
		return "routes.delete", path.Base(name)
	case strings.HasPrefix(name, "global/operations/") && parts[3] == "wait" && r.Method == http.MethodPost:
		return "globalOperations.wait", parts[2]
	case strings.Contains(name, "/instances/") && r.Method == http.MethodGet:
		return "instances.get", path.Base(name)
	}
	return r.Method + " " + name, ""
}

func (c *Cloud) gceAct(w io.Writer, call, name string, body []byte, r *http.Request) Failure {
	switch call {
	case "instances.get":
		fmt.Fprintf(w, `{"kind":"compute#instance","name":%q,"canIpForward":%s}`, name, c.extra["canIpForward"])
	case "routes.list":
		c.gceList(w, r)
	case "routes.get":
		listed := c.listed(GCENetwork)
		i := slices.IndexFunc(listed, func(x Route) bool { return x.ID == name })
		if i < 0 {
			return Failure{Status: 404, Code: "notFound", Message: "The resource '" + name + "' was not found"}
		}
		json.NewEncoder(w).Encode(gceItem(listed[i]))
	case "routes.insert":
		return c.gceInsert(w, body)
	case "routes.delete":
		if !c.remove(GCENetwork, func(x Route) bool { return x.ID == name }) {
			return Failure{Status: 404, Code: "notFound", Message: "The resource '" + name + "' was not found"}
		}
		c.operation(w, "operation-delete", c.pending)
	case "globalOperations.wait":
		i := strings.LastIndex(name, "-")
		left, err := strconv.Atoi(name[i+1:])
		if err != nil {
			c.problem("operation %s", name)
		}
		c.operation(w, name[:max(i, 0)], left-1)
	default:
		c.problem("call %s", call)
		return Failure{Status: 404, Code: "notFound", Message: call}
	}
	return Failure{}
}

// operation writes an operation that is done after some waits, whose number its name has. That with
// the name operation-failed fails.
func (c *Cloud) operation(w io.Writer, name string, left int) {
	o := map[string]any{"kind": "compute#operation", "name": fmt.Sprintf("%s-%d", name, left), "status": "RUNNING"}
	if left <= 0 {
		o["status"] = "DONE"
		if name == "operation-failed" {
			o["error"] = map[string]any{"errors": []any{map[string]any{
				"code": c.extra["failed with"], "message": c.extra["operation message"]}}}
		}
	}
	json.NewEncoder(w).Encode(o)
}

func (c *Cloud) gceInsert(w io.Writer, body []byte) Failure {
	var in gceRoute
	if err := json.Unmarshal(body, &in); err != nil {
		c.problem("routes.insert %s: %v", body, err)
	}
	dst, err := netip.ParsePrefix(in.DestRange)
	if err != nil || in.Priority != 1000 || !strings.HasSuffix(in.Network, "/"+GCENetwork) {
		c.problem("routes.insert %s", body)
	}
	if slices.ContainsFunc(c.tables[GCENetwork], func(r Route) bool { return r.ID == in.Name }) {
		return Failure{Status: 409, Code: "alreadyExists",
			Message: "The resource 'projects/my-project/global/routes/" + in.Name + "' already exists"}
	}
	if code := c.extra["operation error"]; code != "" {
		c.extra["failed with"] = code
		c.operation(w, "operation-failed", c.pending)
		return Failure{}
	}
	c.create(GCENetwork, Route{Dst: dst, ID: in.Name, Target: path.Base(in.Instance)})
	c.operation(w, "operation-insert", c.pending)
	return Failure{}
}

// gceList lists routes of all networks, as if the filter matched all.
func (c *Cloud) gceList(w io.Writer, r *http.Request) {
	if f := r.URL.Query().Get("filter"); f != `network eq ".*/networks/default"` {
		c.problem("filter %s", f)
	}
	routes, next := page(c, c.listed(GCENetwork), r.URL.Query().Get("pageToken"))
	out := map[string]any{"kind": "compute#routeList"}
	items := []gceRoute{}
	for _, x := range routes {
		items = append(items, gceItem(x))
	}
	out["items"] = items
	if next != "" {
		out["nextPageToken"] = next
	}
	json.NewEncoder(w).Encode(out)
}

// gceItem is a route in an answer.
func gceItem(x Route) gceRoute {
	i := gceRoute{Kind: "compute#route", Name: x.ID, Network: gceBase + cmp.Or(x.Network, GCENetwork),
		DestRange: x.Dst.String(), Priority: 1000, Tags: x.Tags}
	if strings.HasSuffix(x.Target, "gateway") {
		i.Gateway = gceBase + "projects/my-project/global/gateways/" + x.Target
	} else {
		i.Instance = gceBase + "projects/my-project/zones/zone-a/instances/" + x.Target
	}
	if x.BlackHole {
		i.Warnings = []any{map[string]any{"code": "NEXT_HOP_INSTANCE_NOT_FOUND"}}
	}
	return i
}
