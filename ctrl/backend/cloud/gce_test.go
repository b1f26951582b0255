package cloud

import (
	"slices"
	"strings"
	"testing"

	"weft/ctrl/backend/cloud/testcloud"
)

const gceDefault = "0.0.0.0/0 via default-internet-gateway"

func TestGCERequests(t *testing.T) {
	c := testcloud.NewGCE()
	c.Wait(2)
	r := start(t, Config{Provider: GCE}, c)
	s := r.awaitInPlace(t)
	r.stop()
	r.awaitRoutes(t, testcloud.GCENetwork, gceDefault, "10.5.1.0/24 via node-1")
	want := []string{
		"instances.get node-1",
		`routes.list filter=network eq ".*/networks/default"&maxResults=500`,
		`routes.insert {"destRange":"10.5.1.0/24","name":"flannel-10-5-1-0-24",` +
			`"network":"` + c.API.URL + `/projects/my-project/global/networks/default",` +
			`"nextHopInstance":"` + c.API.URL + `/projects/my-project/zones/zone-a/instances/node-1","priority":1000}`,
		"globalOperations.wait operation-insert-2",
		"globalOperations.wait operation-insert-1",
		`routes.list filter=network eq ".*/networks/default"&maxResults=500`,
	}
	got := c.Requests()
	if got = got[:min(len(got), len(want))]; !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if s.Provider != GCE || !slices.Equal(s.RouteTables, []string{testcloud.GCENetwork}) || len(s.Notes) > 0 {
		t.Errorf("status %+v", s)
	}
}

func TestGCENames(t *testing.T) {
	for dst, want := range map[string]string{
		"10.5.1.0/24": "flannel-10-5-1-0-24", "fd00:5:0:1::/64": "flannel-fd00-5-0-1-64",
	} {
		if got := gceName(prefixes(dst)[0]); got != want {
			t.Errorf("%s: %s, want %s", dst, got, want)
		}
	}
}

func TestGCEPages(t *testing.T) {
	c := testcloud.NewGCE()
	for _, dst := range []string{"10.5.2.0/24", "10.5.3.0/24", "10.5.4.0/24", "10.5.5.0/24"} {
		c.AddRoute(testcloud.GCENetwork, testcloud.Route{Dst: prefixes(dst)[0], Target: "node-x", ID: "r" + dst[5:6]})
	}
	// On the third page, there is already a route to this node.
	c.AddRoute(testcloud.GCENetwork, testcloud.Route{Dst: me().Subnets[0], Target: "node-1", ID: "by-hand"})
	r := start(t, Config{Provider: GCE}, c)
	r.awaitInPlace(t)
	if c.Count("routes.insert") != 0 || c.Count(`routes.list filter=network eq ".*/networks/default"&maxResults=500&pageToken=page-4`) == 0 {
		t.Error(c.Requests())
	}
}

// TestGCEOthers leaves routes of other networks and of tagged instances alone.
func TestGCEOthers(t *testing.T) {
	c := testcloud.NewGCE()
	c.AddRoute(testcloud.GCENetwork, testcloud.Route{Dst: me().Subnets[0], Target: "node-9", ID: "tagged", Tags: []string{"x"}})
	c.AddRoute(testcloud.GCENetwork, testcloud.Route{Dst: prefixes("10.5.9.0/24")[0], Target: "node-1", ID: "other",
		Network: "projects/my-project/global/networks/other"})
	c.AddRoute(testcloud.GCENetwork, testcloud.Route{Dst: prefixes("10.5.8.0/24")[0], Target: "node-1", ID: "former"})
	r := start(t, Config{Provider: GCE}, c)
	r.awaitError(t, Pending) // the server has one route per destination
	if got := c.Requests(); c.Count("routes.delete former") != 1 && c.Count("routes.insert") == 0 {
		t.Error(got)
	}
	if c.Count("routes.delete tagged")+c.Count("routes.delete other") > 0 {
		t.Error(c.Requests())
	}
}

func TestGCERouteElsewhere(t *testing.T) {
	for _, hole := range []bool{false, true} {
		c := testcloud.NewGCE()
		c.AddRoute(testcloud.GCENetwork, testcloud.Route{Dst: me().Subnets[0], Target: "node-9", ID: "flannel-10-5-1-0-24", BlackHole: hole})
		r := start(t, Config{Provider: GCE}, c)
		r.awaitInPlace(t)
		r.awaitRoutes(t, testcloud.GCENetwork, gceDefault, "10.5.1.0/24 via node-1")
		if c.Count("routes.delete flannel-10-5-1-0-24") != 1 || c.Count("routes.insert") != 1 {
			t.Error(c.Requests())
		}
	}
}

func TestGCEConfig(t *testing.T) {
	c := testcloud.NewGCE()
	c.DeleteItem("project/")
	c.DeleteItem("instance/zone")
	c.DeleteItem("instance/network-interfaces/")
	r := start(t, Config{Provider: GCE, Project: "my-project", Zone: "zone-a", Network: "default"}, c)
	r.awaitInPlace(t)
}

func TestGCEErrors(t *testing.T) {
	testErrors(t, GCE, testcloud.NewGCE, []errorCase{
		{"permission", "routes.insert", testcloud.Failure{Status: 403, Code: "forbidden",
			Message: "Required 'compute.networks.updatePolicy' permission for 'projects/my-project/global/networks/default'"},
			Denied, "the permission compute.networks.updatePolicy is missing"},
		{"unnamed permission", "routes.list", testcloud.Failure{Status: 403, Code: "forbidden", Message: "No."},
			Denied, "routes.list: forbidden: No: the permission compute.routes.list is missing"},
		{"scope", "routes.list", testcloud.Failure{Status: 403, Code: "insufficientPermissions",
			Message: "Request had insufficient authentication scopes."},
			Denied, "needs the scope compute-rw"},
		{"throttled", "routes.list", testcloud.Failure{Status: 403, Code: "rateLimitExceeded", Message: "Rate Limit Exceeded"},
			Throttled, "rateLimitExceeded"},
		{"throttled by status", "routes.list", testcloud.Failure{Status: 429, Code: "busy"}, Throttled, "busy"},
		{"quota", "routes.insert", testcloud.Failure{Status: 403, Code: "quotaExceeded", Message: "Quota 'ROUTES' exceeded. Limit: 250.0"},
			Quota, "Quota 'ROUTES' exceeded. Limit: 250.0: raise the quota of static routes"},
		{"unavailable", "routes.list", testcloud.Failure{Status: 503, Code: "whatever"}, Unavailable, "whatever"},
		{"no such project", "routes.list", testcloud.Failure{Status: 404, Code: "notFound", Message: "The resource 'projects/my-project' was not found"},
			Other, "see config key Project"},
		{"name in use", "routes.insert", testcloud.Failure{Status: 409, Code: "alreadyExists", Message: "exists"},
			Pending, "exists: not listed yet, or of another network"},
	})
}

// TestGCEOperationFails has a change accepted, and its operation fail.
func TestGCEOperationFails(t *testing.T) {
	c := testcloud.NewGCE()
	c.Wait(1)
	c.Set("operation error", "QUOTA_EXCEEDED")
	c.Set("operation message", "Quota 'ROUTES' exceeded.")
	r := start(t, Config{Provider: GCE}, c)
	wantText(t, r.awaitError(t, Quota), "routes.insert: QUOTA_EXCEEDED: Quota 'ROUTES' exceeded")
	c.Set("operation error", "")
	r.awaitInPlace(t)
}

func TestGCENoForwarding(t *testing.T) {
	c := testcloud.NewGCE()
	c.Set("canIpForward", "false")
	r := start(t, Config{Provider: GCE}, c)
	if s := r.awaitInPlace(t); len(s.Notes) != 1 || !strings.Contains(s.Notes[0], "IP forwarding of instance node-1 is off") {
		t.Errorf("%+v", s)
	}
}

// TestGCEInstanceNotReadable has a service account of flannel's, which may not read instances.
func TestGCEInstanceNotReadable(t *testing.T) {
	c := testcloud.NewGCE()
	c.Always("instances.get", testcloud.Failure{Status: 403, Code: "forbidden"})
	r := start(t, Config{Provider: GCE}, c)
	r.awaitInPlace(t)
}

func TestGCETokenRevoked(t *testing.T) {
	c := testcloud.NewGCE()
	r := start(t, Config{Provider: GCE}, c)
	r.awaitInPlace(t)
	c.SetKey("gce-token", testcloud.Key{})
	c.SetGCEToken("next-token")
	r.await(t, "refusal", func(Status) bool { return strings.Contains(r.log.String(), "authError") })
	r.awaitInPlace(t)
}

func TestGCENoServiceAccount(t *testing.T) {
	c := testcloud.NewGCE()
	c.DeleteItem("instance/service-accounts/")
	r := start(t, Config{Provider: GCE}, c)
	wantText(t, r.awaitError(t, Credentials), "this instance has no service account: attach one, with the scope compute-rw")
}
