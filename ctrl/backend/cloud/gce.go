package cloud

import (
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
	names      map[netip.Prefix]string // of routes to this instance, by destination
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
	client.http.Timeout = operationTimeout + callTimeout // of globalOperations.wait
	host := cmp.Or(e.metadata, "http://169.254.169.254")
	if h := os.Getenv("GCE_METADATA_HOST"); h != "" { // the variable of Google's libraries
		host = "http://" + h
	}
	return &google{
		client: client, configured: c,
		endpoint: cmp.Or(e.api, "https://compute.googleapis.com/compute/v1/"),
		metadata: &metadataService{
			items: host + "/computeMetadata/v1/", header: "Metadata-Flavor", value: "Google",
			http: metadataClient(), calls: client.calls, instance: "a GCE instance",
		},
	}, nil
}

// locate reads the metadata and whether the instance may forward packets.
func (g *google) locate(ctx context.Context, n Node) (place, error) {
	g.token, g.names = "", map[netip.Prefix]string{}
	if err := g.findSelf(ctx, n); err != nil {
		return place{}, err
	}
	p := place{tables: []string{g.self.network}}
	var instance struct {
		CanIPForward bool `json:"canIpForward"`
	}
	// Without this permission the daemon cannot know; flannel does not need it either.
	err := g.call(ctx, gceCall{name: "instances.get", resource: g.self.link()}, &instance)
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
	var interfaces string
	items := map[string]*string{"instance/name": &self.name}
	for item, text := range map[string]*string{"project/project-id": &self.project,
		"instance/zone": &self.zone, "instance/network-interfaces/": &interfaces} {
		if *text == "" && (c.Network == "" || text != &interfaces) {
			items[item] = text
		}
	}
	if err := g.metadata.all(ctx, items); err != nil {
		return err
	}
	self.zone = path.Base(self.zone) // projects/NUMBER/zones/ZONE
	network := c.Network
	if network == "" {
		i, err := interfaceOf(lines(interfaces), n.Addrs, func(i string) (string, error) {
			return g.metadata.get(ctx, "instance/network-interfaces/"+i+"/ip")
		})
		if err != nil {
			return err
		}
		// projects/NUMBER/networks/NAME, of this project or the host of a shared VPC
		err = g.metadata.all(ctx, map[string]*string{"instance/network-interfaces/" + i + "/network": &network})
		if err != nil {
			return err
		}
		network = path.Base(network)
	}
	self.network = networkLink(self.project, network)
	g.self = self
	return nil
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

// routes gets the routes of the network to some destinations by their names, or lists them all.
func (g *google) routes(ctx context.Context, network string, dsts []netip.Prefix) ([]route, error) {
	if len(dsts) == 0 {
		return g.list(ctx, network)
	}
	var all []route
	for _, dst := range dsts {
		var r gceRoute
		name := cmp.Or(g.names[dst], gceName(dst))
		err := g.call(ctx, gceCall{name: "routes.get", resource: g.global("routes/" + url.PathEscape(name))}, &r)
		if err != nil {
			if unless("notFound", err) == nil {
				continue
			}
			return nil, err
		}
		all = append(all, g.routeOf(r, network)...)
	}
	return all, nil
}

// list lists the routes of the network, all pages.
func (g *google) list(ctx context.Context, network string) ([]route, error) {
	var list []route
	query := url.Values{"maxResults": {"500"}, "filter": {`network eq ".*/networks/` + path.Base(network) + `"`}}
	err := pages("routes.list", func(token string) (string, error) {
		if token != "" {
			query.Set("pageToken", token)
		}
		var page struct {
			Items []gceRoute `json:"items"`
			Next  string     `json:"nextPageToken"`
		}
		err := g.call(ctx, gceCall{name: "routes.list", kind: "List",
			resource: g.global("routes") + "?" + query.Encode()}, &page)
		for _, r := range page.Items {
			list = append(list, g.routeOf(r, network)...)
		}
		return page.Next, err
	})
	for _, r := range list {
		if r.local && r.usable {
			g.names[r.dst] = r.id
		}
	}
	return list, err
}

// routeOf converts a route in an answer; none if it is of another network, or for tagged instances.
func (g *google) routeOf(r gceRoute, network string) []route {
	dst, err := netip.ParsePrefix(r.DestRange)
	if err != nil || !strings.HasSuffix(r.Network, "/"+network) || len(r.Tags) > 0 {
		return nil
	}
	return []route{{
		dst: dst, id: r.Name, target: cmp.Or(lastPart(r.Instance), r.IP, r.Gateway),
		local: strings.HasSuffix(r.Instance, "/"+g.self.link()), usable: r.usable(),
	}}
}

// lastPart returns the name in the link of a resource.
func lastPart(link string) string { return link[strings.LastIndexByte(link, '/')+1:] }

func (g *google) create(ctx context.Context, network string, dst netip.Prefix) error {
	base := strings.TrimSuffix(g.endpoint, "/") + "/"
	return g.change(ctx, gceCall{name: "routes.insert", method: http.MethodPost, resource: g.global("routes"),
		body: gceRoute{
			Name: gceName(dst), Network: base + network, DestRange: dst.String(),
			Priority: gcePriority, Instance: base + g.self.link(),
		}})
}

// gceName returns the name of the route to a subnet: flannel-10-5-77-0-24.
func gceName(dst netip.Prefix) string {
	parts := strings.FieldsFunc(dst.String(), func(r rune) bool { return strings.ContainsRune(".:/", r) })
	return "flannel-" + strings.Join(parts, "-")
}

func (g *google) remove(ctx context.Context, _ string, r route) error {
	return unless("notFound", g.change(ctx, gceCall{name: "routes.delete", method: http.MethodDelete,
		resource: g.global("routes/" + url.PathEscape(r.id))}))
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

const (
	// operationTimeout limits the time of a change. A request waits for at most two minutes.
	operationTimeout = 2 * time.Minute
	// operationPause is between two requests that wait: they may return at once.
	operationPause = 500 * time.Millisecond
)

// change makes a change and waits until it is done.
func (g *google) change(ctx context.Context, c gceCall) error {
	ctx, cancel := context.WithTimeout(ctx, operationTimeout)
	defer cancel()
	var o operation
	if err := g.call(ctx, c, &o); err != nil {
		return err
	}
	for o.Status != "DONE" {
		wait := gceCall{name: waitCall, method: http.MethodPost,
			resource: g.global("operations/" + url.PathEscape(o.Name) + "/wait")}
		if err := g.call(ctx, wait, &o); err != nil {
			return err
		}
		if o.Status == "DONE" {
			break
		}
		select {
		case <-ctx.Done():
			return pending("operation of %s is not done after %v", c.name, operationTimeout)
		case <-time.After(operationPause):
		}
	}
	for _, e := range o.Error.Errors {
		return gceError(c.name, e.Code, keyPair{token: g.token}.scrub(e.Message))
	}
	return nil
}

const waitCall = "globalOperations.wait"

// gceCall is a call of the API.
type gceCall struct {
	name     string // as in the API's reference: "routes.get"
	method   string // empty: GET
	resource string
	kind     string // what the kind of the answer ends in; may be empty
	body     any    // nil if there is none
}

// call sends a request and decodes its answer.
func (g *google) call(ctx context.Context, c gceCall, into any) (err error) {
	defer func() { g.client.calls.add(c.name, err) }()
	token, err := g.authorization(ctx)
	if err != nil {
		return err
	}
	if c.name != waitCall {
		limited, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		ctx = limited
	}
	q := request{call: c.name, method: cmp.Or(c.method, http.MethodGet), keys: keyPair{token: token},
		url:    strings.TrimSuffix(g.endpoint, "/") + "/" + c.resource,
		header: map[string]string{"Authorization": "Bearer " + token}}
	if c.body != nil {
		q.header["Content-Type"] = "application/json"
		if q.body, err = json.Marshal(c.body); err != nil {
			return err
		}
	}
	answer, err := g.client.send(ctx, q)
	if err != nil {
		return err
	}
	return answer.decodeGCE(c, into)
}

// decodeGCE decodes an answer, or its error.
func (a answer) decodeGCE(c gceCall, into any) error {
	var failed struct {
		Error struct {
			Message string `json:"message"`
			Errors  []struct {
				Reason string `json:"reason"`
			} `json:"errors"`
		} `json:"error"`
	}
	if a.ok() {
		var kind struct {
			Kind string `json:"kind"`
		}
		if json.Unmarshal(a.body, &kind) != nil || !strings.HasPrefix(kind.Kind, "compute#") ||
			!strings.HasSuffix(kind.Kind, c.kind) || json.Unmarshal(a.body, into) != nil {
			return a.unreadable(c.name, "JSON")
		}
		return nil
	}
	if json.Unmarshal(a.body, &failed) != nil {
		return a.unreadable(c.name, "JSON")
	}
	reason := http.StatusText(a.status)
	if len(failed.Error.Errors) > 0 {
		reason = failed.Error.Errors[0].Reason
	}
	e := gceError(c.name, reason, failed.Error.Message)
	if a.status == http.StatusUnauthorized {
		e.Kind = Credentials
	}
	return a.failure(e)
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
