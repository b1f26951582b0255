package cloud

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path"
	"regexp"
	"strings"
	"time"
)

// google is the Compute Engine API, version 1, and the metadata server. Its one route table is the
// VPC network.
type google struct {
	client   *client
	metadata *metadataService

	configured Config
	endpoint   string
	self       gceInstance
	token      string
	expires    time.Time // of token
}

// gceInstance is this instance.
type gceInstance struct {
	project, zone, name string
	network             string // projects/PROJECT/global/networks/NAME
}

// link returns the resource of the instance.
func (i gceInstance) link() string {
	return fmt.Sprintf("projects/%s/zones/%s/instances/%s", i.project, i.zone, i.name)
}

// gcePriority is the priority of routes that GCE gives by default.
const gcePriority = 1000

func newGCE(c Config, client *client, e endpoints) (provider, error) {
	client.http.Timeout = operationTimeout + callTimeout
	host := cmp.Or(e.metadata, "http://169.254.169.254")
	if h := os.Getenv("GCE_METADATA_HOST"); h != "" { // the variable of Google's libraries
		host = "http://" + h
	}
	return &google{
		client: client, configured: c,
		endpoint: cmp.Or(e.api, "https://compute.googleapis.com/compute/v1/"),
		metadata: &metadataService{
			items: host + "/computeMetadata/v1/", header: "Metadata-Flavor", value: "Google",
			http: metadataClient(), calls: client.calls,
			hint: "is this a GCE instance, and may it reach " + host + "?",
		},
	}, nil
}

// locate reads the metadata and whether the instance may forward packets.
func (g *google) locate(ctx context.Context, n Node) (place, error) {
	g.token = ""
	if err := g.findSelf(ctx, n); err != nil {
		return place{}, err
	}
	p := place{tables: []string{g.self.network}}
	var instance struct {
		CanIPForward bool `json:"canIpForward"`
	}
	// Without this permission the daemon cannot know; flannel does not need it either.
	err := g.call(ctx, "instances.get", http.MethodGet, g.self.link(), nil, &instance)
	switch {
	case err != nil && kindOf(err) != Denied:
		return place{}, err
	case err == nil && !instance.CanIPForward:
		p.notes = append(p.notes, "GCE drops packets of pods: IP forwarding of instance "+
			g.self.name+" is off (create it with --can-ip-forward)")
	}
	return p, nil
}

func (g *google) findSelf(ctx context.Context, n Node) error {
	c := g.configured
	self := gceInstance{project: c.Project, zone: c.Zone}
	var err error
	read := func(item string) (text string) {
		if err == nil {
			text, err = g.metadata.get(ctx, item)
		}
		return text
	}
	self.name = read("instance/name")
	if self.project == "" {
		self.project = read("project/project-id")
	}
	if self.zone == "" {
		self.zone = path.Base(read("instance/zone")) // projects/NUMBER/zones/ZONE
	}
	if c.Network != "" {
		self.network = networkLink(self.project, c.Network)
	} else {
		interfaces := lines(read("instance/network-interfaces/"))
		if err != nil {
			return err
		}
		var i string
		i, err = interfaceOf(interfaces, n.Addrs, func(i string) (string, error) {
			return g.metadata.get(ctx, "instance/network-interfaces/"+i+"/ip")
		})
		if err == nil {
			// projects/NUMBER/networks/NAME, of this project or the host of a shared VPC
			self.network = networkLink(self.project,
				path.Base(read("instance/network-interfaces/"+i+"/network")))
		}
	}
	if err == nil {
		g.self = self
	}
	return err
}

// networkLink returns the resource of a network, from its name or any form of its URL.
func networkLink(project, network string) string {
	if _, resource, ok := strings.Cut(network, "projects/"); ok {
		return "projects/" + resource
	}
	return "projects/" + project + "/global/networks/" + path.Base(network)
}

// authorization returns the token of the instance's service account.
func (g *google) authorization(ctx context.Context) (string, error) {
	if g.token != "" && time.Now().Before(g.expires) {
		return g.token, nil
	}
	text, err := g.metadata.get(ctx, "instance/service-accounts/default/token")
	if errors.Is(err, errNotThere) {
		return "", &Error{Call: "metadata", Kind: Credentials,
			Message: "this instance has no service account",
			Hint:    "attach one, with the scope compute-rw"}
	}
	if err != nil {
		return "", err
	}
	var t struct {
		Token     string `json:"access_token"`
		ExpiresIn int    `json:"expires_in"` // seconds
	}
	if json.Unmarshal([]byte(text), &t) != nil || t.Token == "" {
		return "", &Error{Call: "metadata", Kind: Credentials, Message: "token is not JSON"}
	}
	g.token, g.expires = t.Token, time.Now().Add(time.Duration(t.ExpiresIn)*time.Second-time.Minute)
	return g.token, nil
}

// gceRoute is a route in requests and answers.
type gceRoute struct {
	Name        string   `json:"name"`
	Description string   `json:"description,omitempty"`
	Network     string   `json:"network"`
	DestRange   string   `json:"destRange"`
	Priority    int      `json:"priority"`
	Tags        []string `json:"tags,omitempty"`
	Instance    string   `json:"nextHopInstance,omitempty"`
	Gateway     string   `json:"nextHopGateway,omitempty"`
	IP          string   `json:"nextHopIp,omitempty"`
	Status      string   `json:"routeStatus,omitempty"`
	Warnings    []struct {
		Code string `json:"code"`
	} `json:"warnings,omitempty"`
}

// usable reports whether the next hop works. GCE warns of one that is not an instance of the
// network any more.
func (r gceRoute) usable() bool {
	for _, w := range r.Warnings {
		if strings.HasPrefix(w.Code, "NEXT_HOP_INSTANCE_NOT_FOUND") ||
			strings.HasPrefix(w.Code, "NEXT_HOP_INSTANCE_NOT_ON_NETWORK") {
			return false
		}
	}
	return r.Status == "" || r.Status == "ACTIVE"
}

// routes lists the routes of the network, all pages. Those for tagged instances are not ours.
func (g *google) routes(ctx context.Context, network string) ([]route, error) {
	query := url.Values{"maxResults": {"500"}}
	var list []route
	for {
		var page struct {
			Items []gceRoute `json:"items"`
			Next  string     `json:"nextPageToken"`
		}
		err := g.call(ctx, "routes.list", http.MethodGet, g.global("routes")+"?"+query.Encode(), nil,
			&page)
		if err != nil {
			return nil, err
		}
		for _, r := range page.Items {
			dst, err := netip.ParsePrefix(r.DestRange)
			if err != nil || !strings.HasSuffix(r.Network, "/"+network) || len(r.Tags) > 0 {
				continue
			}
			list = append(list, route{
				dst: dst, id: r.Name, target: cmp.Or(path.Base(r.Instance), r.IP, r.Gateway),
				local: strings.HasSuffix(r.Instance, "/"+g.self.link()), usable: r.usable(),
			})
		}
		if page.Next == "" {
			return list, nil
		}
		query.Set("pageToken", page.Next)
	}
}

func (g *google) put(ctx context.Context, network string, dst netip.Prefix, old *route) error {
	if old != nil {
		if err := g.remove(ctx, network, *old); err != nil {
			return err
		}
	}
	base := strings.TrimSuffix(g.endpoint, "/") + "/"
	return g.change(ctx, "routes.insert", http.MethodPost, g.global("routes"), gceRoute{
		Name: gceName(dst), Network: base + network, DestRange: dst.String(),
		Priority: gcePriority, Instance: base + g.self.link(),
	})
}

// gceName returns the name of the route to a subnet: flannel-10-5-77-0-24.
func gceName(dst netip.Prefix) string {
	parts := strings.FieldsFunc(dst.String(), func(r rune) bool { return strings.ContainsRune(".:/", r) })
	return "flannel-" + strings.Join(parts, "-")
}

func (g *google) remove(ctx context.Context, _ string, r route) error {
	err := g.change(ctx, "routes.delete", http.MethodDelete, g.global("routes/"+url.PathEscape(r.id)), nil)
	var e *Error
	if errors.As(err, &e) && e.Code == "notFound" {
		return nil
	}
	return err
}

// global returns a resource of the project that has no zone.
func (g *google) global(resource string) string {
	return "projects/" + g.self.project + "/global/" + resource
}

// operation is a change in progress.
type operation struct {
	Name   string `json:"name"`
	Status string `json:"status"`
	Error  struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
	} `json:"error"`
}

// operationTimeout limits the time that a change takes. A request waits for at most two minutes.
const operationTimeout = 2 * time.Minute

// change makes a change and waits until it is done.
func (g *google) change(ctx context.Context, call, method, resource string, body any) error {
	ctx, cancel := context.WithTimeout(ctx, operationTimeout)
	defer cancel()
	var o operation
	if err := g.call(ctx, call, method, resource, body, &o); err != nil {
		return err
	}
	for o.Status != "DONE" {
		if ctx.Err() != nil {
			return pending("operation of %s is not done after %v", call, operationTimeout)
		}
		name := url.PathEscape(o.Name)
		err := g.call(ctx, "globalOperations.wait", http.MethodPost,
			g.global("operations/"+name+"/wait"), nil, &o)
		if err != nil {
			return err
		}
	}
	for _, e := range o.Error.Errors {
		return gceError(call, e.Code, e.Message)
	}
	return nil
}

// call sends a request and decodes its answer.
func (g *google) call(ctx context.Context, name, method, resource string, body, into any) (err error) {
	defer func() { g.client.calls.add(name, err) }()
	token, err := g.authorization(ctx)
	if err != nil {
		return err
	}
	var text []byte
	if body != nil {
		if text, err = json.Marshal(body); err != nil {
			return err
		}
	}
	r, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(g.endpoint, "/")+"/"+resource,
		bytes.NewReader(text))
	if err != nil {
		return &Error{Call: name, err: withoutURL(err)}
	}
	r.Header.Set("Authorization", "Bearer "+token)
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	answer, err := g.client.do(name, r)
	if err != nil {
		return err
	}
	if answer.ok() {
		if json.Unmarshal(answer.body, into) != nil {
			return answer.unreadable(name, "JSON")
		}
		return nil
	}
	var failed struct {
		Error struct {
			Message string `json:"message"`
			Errors  []struct {
				Reason string `json:"reason"`
			} `json:"errors"`
		} `json:"error"`
	}
	if json.Unmarshal(answer.body, &failed) != nil {
		return answer.unreadable(name, "JSON")
	}
	reason := http.StatusText(answer.status)
	if len(failed.Error.Errors) > 0 {
		reason = failed.Error.Errors[0].Reason
	}
	e := gceError(name, reason, failed.Error.Message)
	if answer.status == http.StatusUnauthorized {
		e.Kind = Credentials
	}
	return answer.complete(e)
}

// gcePermission matches the permission that a refusal names.
const gcePermission = `'(compute\.[A-Za-z.]+)' permission`

// gceError classifies a reason of an error, or a code of an operation.
func gceError(call, reason, message string) *Error {
	e := &Error{Call: call, Code: reason, Message: message, Kind: firstCode(reason, []codeKind{
		{"rateLimitExceeded", Throttled}, {"userRateLimitExceeded", Throttled},
		{"RATE_LIMIT_EXCEEDED", Throttled}, {"quotaExceeded", Quota}, {"QUOTA_EXCEEDED", Quota},
		{"LIMIT_EXCEEDED", Quota}, {"limitExceeded", Quota},
		{"forbidden", Denied}, {"insufficientPermissions", Denied}, {"PERMISSION", Denied},
		{"accessNotConfigured", Denied},
		{"authError", Credentials}, {"required", Other}, {"resourceNotReady", Pending},
		{"RESOURCE_IN_USE_BY_ANOTHER_RESOURCE", Pending}, {"resourceInUseByAnotherResource", Pending},
		{"backendError", Unavailable}, {"internalError", Unavailable},
	})}
	switch {
	case reason == "insufficientPermissions" && strings.Contains(message, "scope"):
		e.Hint = "the instance's service account needs the scope compute-rw"
	case e.Kind == Denied:
		permission := "compute." + call
		if m := regexp.MustCompile(gcePermission).FindStringSubmatch(message); m != nil {
			permission = m[1]
		}
		e.Hint = missing(permission)
	case e.Kind == Quota:
		e.Hint = "raise the quota of static routes of the project or network"
	case reason == "alreadyExists":
		e.Kind = Pending
		e.Hint = "not listed yet, or of another network"
	case reason == "notFound" && call == "routes.list":
		e.Hint = "see config key Project"
	case reason == "notFound" && call == "instances.get":
		e.Hint = "see config keys Project and Zone"
	}
	return e
}
