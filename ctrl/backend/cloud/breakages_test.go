package cloud

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"weft/ctrl/backend/cloud/testcloud"
)

// TestSteadyCalls has one call per check while the route is in place.
func TestSteadyCalls(t *testing.T) {
	each(t, func(t *testing.T, p providerCase) {
		c := p.cloud()
		r := start(t, Config{Provider: p.name}, c)
		r.awaitInPlace(t)
		before, checked := len(c.Requests()), r.Status().Checked
		checks := 0
		r.await(t, "20 checks", func(s Status) bool {
			if s.Checked.After(checked) {
				checks, checked = checks+1, s.Checked
			}
			return checks >= 20
		})
		r.stop()
		calls := c.Requests()[before:]
		for _, call := range calls {
			if !strings.HasPrefix(call, p.check) {
				t.Errorf("call %s", call)
			}
		}
		// The pages of AWS's tables come in two calls here.
		if n := len(calls); n > (checks+3)*2 || p.name != AWS && n > checks+3 {
			t.Errorf("%d calls for %d checks", n, checks)
		}
	})
}

// TestServerErrors has errors of the server before each success.
func TestServerErrors(t *testing.T) {
	each(t, func(t *testing.T, p providerCase) {
		c := p.cloud()
		fault := testcloud.Failure{Status: 500, Code: "InternalError", Message: "oops"}
		c.Fail(p.list, fault, fault)
		c.Fail(p.create, fault, testcloud.Failure{Status: 502, HTML: true}, testcloud.Failure{Drop: true})
		r := start(t, Config{Provider: p.name}, c)
		r.awaitInPlace(t)
		r.awaitOwn(t, p)
	})
}

// awaitOwn waits until the table of a provider has a route to this node.
func (r *rig) awaitOwn(t *testing.T, p providerCase) {
	t.Helper()
	r.await(t, "own route", func(Status) bool {
		return strings.Contains(strings.Join(r.cloud.Routes(p.table), "\n"), "10.5.1.0/24 via "+p.self)
	})
}

// TestStrangeAnswers has answers that are cut, or of something else.
func TestStrangeAnswers(t *testing.T) {
	for _, x := range []struct {
		name    string
		failure testcloud.Failure
		want    string
	}{
		{"connection cut", testcloud.Failure{Raw: "{<", Short: true}, "unexpected EOF"},
		{"cut XML", testcloud.Failure{Raw: `<?xml version="1.0"?><DescribeRouteTablesResponse><routeTab`}, "answer with status 200 is not the "},
		{"cut JSON", testcloud.Failure{Raw: `{"kind":"compute#routeList","RequestId":"1","items":[{"na`}, "answer with status 200 is not the "},
		{"empty object", testcloud.Failure{Raw: "{}"}, "answer with status 200 is not the "},
		{"null", testcloud.Failure{Raw: "null"}, "answer with status 200 is not the "},
		{"list", testcloud.Failure{Raw: "[]"}, "answer with status 200 is not the "},
		{"element", testcloud.Failure{Raw: "<ok/>"}, "answer with status 200 is not the "},
		{"teapot", testcloud.Failure{Raw: `"tea"`, Status: 418}, "answer with status 418 is not the "},
	} {
		t.Run(x.name, func(t *testing.T) {
			each(t, func(t *testing.T, p providerCase) {
				c := p.cloud()
				f := x.failure
				f.Type = p.form
				c.Always(p.list, f)
				r := start(t, Config{Provider: p.name}, c)
				wantText(t, r.awaitError(t, Unavailable), x.want)
				if r.Status().InPlace || c.Count(p.create) > 0 {
					t.Errorf("created a route: %v", c.Requests())
				}
				c.Heal()
				r.awaitInPlace(t)
			})
		})
	}
}

// TestRedirect has a captive portal send requests elsewhere: keys must not follow.
func TestRedirect(t *testing.T) {
	each(t, func(t *testing.T, p providerCase) {
		var reached atomic.Int32
		portal := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Add(1) }))
		t.Cleanup(portal.Close)
		c := p.cloud()
		c.Always(p.list, testcloud.Failure{Redirect: portal.URL})
		c.Fail("metadata", testcloud.Failure{Redirect: portal.URL})
		r := start(t, Config{Provider: p.name}, c)
		r.await(t, "redirection", func(s Status) bool {
			return s.Err != nil && strings.Contains(s.Err.Error(), p.list+": answer with status 307")
		})
		if n := reached.Load(); n > 0 {
			t.Errorf("%d requests have followed", n)
		}
	})
}

// TestPagesWithoutEnd has each page name a next one.
func TestPagesWithoutEnd(t *testing.T) {
	each(t, func(t *testing.T, p providerCase) {
		c := p.cloud()
		c.Set("loop", "yes")
		r := start(t, Config{Provider: p.name}, c)
		wantText(t, r.awaitError(t, Unavailable), p.list+": the pages of the list do not end")
		if n := c.Count(p.create); n > 0 {
			t.Errorf("%d routes created", n)
		}
		c.Set("loop", "")
		r.awaitInPlace(t)
	})
}

// TestListedTwice has lists that overlap: the route of another is replaced once.
func TestListedTwice(t *testing.T) {
	each(t, func(t *testing.T, p providerCase) {
		c := p.cloud()
		c.Set("twice", "yes")
		c.AddRoute(p.table, testcloud.Route{Dst: me().Subnets[0], Target: "i-9"})
		r := start(t, Config{Provider: p.name}, c)
		r.awaitInPlace(t)
		r.awaitOwn(t, p)
		if n := c.Count(p.create) + c.Count("ReplaceRoute"); n != 1 {
			t.Errorf("%d routes created: %v", n, c.Requests())
		}
	})
}

// TestRemovalDenied has no permission for one call only: the node has its route all the same.
func TestRemovalDenied(t *testing.T) {
	each(t, func(t *testing.T, p providerCase) {
		c := p.cloud()
		c.AddRoute(p.table, testcloud.Route{Dst: prefixes("10.5.7.0/24")[0], Target: p.self})
		c.Always(p.remove, testcloud.Failure{Status: 403, Code: p.denied, Message: "No."})
		r := start(t, Config{Provider: p.name}, c)
		r.awaitOwn(t, p)
		s := r.await(t, "a route in place beside an error", func(s Status) bool { return s.InPlace && s.Err != nil })
		wantText(t, s.Err.Error(), p.remove+": "+p.denied+": No: the permission ")
		wantText(t, s.Err.Error(), p.remove+" is missing")
		c.Heal()
		r.await(t, "no error", func(s Status) bool { return s.InPlace && s.Err == nil })
	})
}

// TestTableDeleted has the route table deleted while the daemon runs, and another one in its place.
func TestTableDeleted(t *testing.T) {
	each(t, func(t *testing.T, p providerCase) {
		if p.name == GCE {
			t.Skip("its table is the network")
		}
		c := p.cloud()
		r := start(t, Config{Provider: p.name}, c)
		r.awaitInPlace(t)
		c.AddTable("new-system", "subnet-1", "vsw-1")
		c.DeleteTable(p.table)
		next := "new-system"
		if p.name == Tencent {
			next = "rtb-second"
		}
		r.await(t, "route in "+next, func(Status) bool { return len(c.Routes(next)) == 1 })
		wantText(t, r.log.String(), "route table "+p.table+": ")
	})
}

// TestTwoClaims has another program that takes the route again and again.
func TestTwoClaims(t *testing.T) {
	each(t, func(t *testing.T, p providerCase) {
		c := p.cloud()
		r := prepare(t, Config{Provider: p.name}, c)
		r.pace.settle = 0
		r.Set(me())
		r.run(t)
		note := func(s Status) bool {
			return strings.Contains(strings.Join(s.Notes, " "), "does another node have this subnet")
		}
		for range 3 {
			if note(r.Status()) {
				t.Error("noted too early")
			}
			r.awaitOwn(t, p)
			r.awaitInPlace(t)
			dst := me().Subnets[0]
			c.RemoveRoute(p.table, dst)
			id := ""
			if p.name == GCE {
				id = gceName(dst)
			}
			c.AddRoute(p.table, testcloud.Route{Dst: dst, Target: "i-9", ID: id})
		}
		r.await(t, "note", note)
		if n := strings.Count(r.log.String(), "does another node"); n != 1 {
			t.Errorf("logged %d times", n)
		}
	})
}

// TestAnotherCloud has a metadata service that knows none of the items, as on another cloud.
func TestAnotherCloud(t *testing.T) {
	for name, want := range map[string]string{
		AWS: "instance-id: not there: is this an EC2 instance?", Tencent: "network/interfaces/macs/: not there: is this a CVM instance?",
		Alibaba: "instance-id: not there: is this an ECS instance?",
		GCE:     "instance/name: an answer with status 404 Not Found is not that of the cloud: is this a GCE instance, may it reach ",
	} {
		t.Run(name, func(t *testing.T) {
			var c *testcloud.Cloud
			for _, p := range providers() {
				if p.name == name {
					c = p.cloud()
				}
			}
			c.Metadata.Config.Handler = http.NotFoundHandler()
			r := start(t, Config{Provider: name}, c)
			wantText(t, r.awaitError(t, Unavailable), "metadata: "+want)
		})
	}
}

// TestEmptyItems has items of the metadata without a value, or with one that would lead elsewhere.
func TestEmptyItems(t *testing.T) {
	for _, x := range []struct{ provider, item, value, want string }{
		{AWS, "placement/region", "", "placement/region is empty"},
		{AWS, "placement/region", "x@evil.example/", `region "x@evil.example/" is not a name`},
		{AWS, "services/domain", "amazonaws.com/..", `domain "amazonaws.com/.." is not a name`},
		{AWS, "network/interfaces/macs/", "", "network/interfaces/macs/ is empty"},
		{GCE, "instance/zone", "", "instance/zone is empty"},
		{GCE, "instance/name", "", "instance/name is empty"},
		{Alibaba, "region-id", "", "region-id is empty"},
		{Alibaba, "region-id", "cn test", `region "cn test" is not a name`},
		{Tencent, "placement/region", "", "placement/region is empty"},
		{Tencent, "network/interfaces/macs/52:54:00:00:00:01/vpc-id", "", "vpc-id is empty"},
	} {
		t.Run(x.provider+" "+x.want, func(t *testing.T) {
			for _, p := range providers() {
				if p.name != x.provider {
					continue
				}
				c := p.cloud()
				c.SetItem(x.item, x.value)
				r := start(t, Config{Provider: x.provider}, c)
				s := r.await(t, "error", func(s Status) bool { return s.Err != nil })
				wantText(t, s.Err.Error(), x.want)
			}
		})
	}
}

// TestRoleWithoutKeys has a role that the service behind the metadata cannot assume.
func TestRoleWithoutKeys(t *testing.T) {
	for _, x := range []struct {
		provider, item string
		cloud          func() *testcloud.Cloud
	}{
		{AWS, "iam/security-credentials/node-role", testcloud.NewAWS},
		{Alibaba, "ram/security-credentials/node-role", testcloud.NewAlibaba},
		{Tencent, "cam/security-credentials/node-role", testcloud.NewTencent},
	} {
		for text, want := range map[string]string{
			`{"Code":"AssumeRoleUnauthorizedAccess","Message":"It cannot be assumed."}`: "AssumeRoleUnauthorizedAccess: It cannot be assumed",
			`{"Code":"Success"}`: "the metadata has no keys of the role",
			`{"AccessKeyId":7}`:  "the metadata has no keys of the role",
			`oops`:               "credentials of the role are not JSON",
		} {
			t.Run(x.provider+" "+want, func(t *testing.T) {
				c := x.cloud()
				c.SetItem(x.item, text)
				r := start(t, Config{Provider: x.provider}, c)
				wantText(t, r.awaitError(t, Credentials), want)
			})
		}
	}
}

// TestSecretsInAnswers has the role's keys in everything that an answer can have.
func TestSecretsInAnswers(t *testing.T) {
	each(t, func(t *testing.T, p providerCase) {
		echo := strings.Join(p.secrets, " ")
		for _, f := range []testcloud.Failure{
			{Status: 400, Code: "Odd" + p.secrets[0], Message: echo},
			{Status: 403, Code: p.denied, Message: strings.Repeat("x", 290) + echo},
			{Status: 502, Raw: "<html>" + echo, Type: "text/html"},
			{Raw: echo, Type: p.form},
		} {
			c := p.cloud()
			c.Always(p.list, f)
			r := start(t, Config{Provider: p.name}, c)
			s := r.await(t, "error", func(s Status) bool { return s.Err != nil && c.Count(p.list) > 0 })
			status, err := json.Marshal(s)
			if err != nil {
				t.Fatal(err)
			}
			all := r.log.String() + string(status) + s.Err.Error() + fmt.Sprintf("%+v", s)
			for _, secret := range p.secrets {
				if strings.Contains(all, secret) {
					t.Errorf("%s is shown in %s", secret, all)
				}
			}
			r.stop()
		}
	})
}

// TestScrub removes keys in the forms in which they are sent.
func TestScrub(t *testing.T) {
	k := keyPair{id: "id+1", secret: "s/=", token: "t o"}
	if got := k.scrub("id+1 id%2B1 s/= s%2F%3D t o t+o t%20o x"); got != strings.Repeat(hidden+" ", 7)+"x" {
		t.Error(got)
	}
}

// TestProxyPassword has a proxy that is not a URL, which errors of the HTTP client repeat.
func TestProxyPassword(t *testing.T) {
	c := newClient(&calls{})
	c.http.Transport.(*http.Transport).Proxy = withoutPassword(func(*http.Request) (*url.URL, error) {
		return nil, errors.New(`invalid proxy address "http://user:hunter2@[proxy:3128"`)
	})
	_, err := c.send(t.Context(), request{call: "x", method: http.MethodGet, url: "https://ec2.example/"})
	if err == nil || err.Error() != "x: ec2.example: HTTPS_PROXY is not the URL of a proxy" {
		t.Error(err)
	}
}

// TestUnknownCA has an API with a certificate of an unknown CA.
func TestUnknownCA(t *testing.T) {
	s := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(s.Close)
	_, err := newClient(&calls{}).send(t.Context(), request{call: "DescribeRouteTables", method: http.MethodPost, url: s.URL})
	var e *Error
	if !errors.As(err, &e) || e.Kind != Unavailable {
		t.Fatal(err)
	}
	wantText(t, err.Error(), "DescribeRouteTables: "+s.Listener.Addr().String()+": tls: failed to verify certificate: ")
	wantText(t, err.Error(), "SSL_CERT_FILE")
}

// TestThrottledHTML has a load balancer refuse requests with a page.
func TestThrottledHTML(t *testing.T) {
	each(t, func(t *testing.T, p providerCase) {
		c := p.cloud()
		c.Always(p.list, testcloud.Failure{HTML: true, Status: 429, RetryAfter: "1"})
		r := start(t, Config{Provider: p.name}, c)
		s := r.await(t, "error", func(s Status) bool { return s.Err != nil && kindOf(s.Err) == Throttled })
		var e *Error
		if !errors.As(s.Err, &e) || e.RetryAfter != time.Second {
			t.Errorf("%+v", s.Err)
		}
	})
}
