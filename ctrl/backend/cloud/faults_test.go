package cloud

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"weft/ctrl/backend/cloud/testcloud"
)

// providers lists the clouds.
func providers() []providerCase {
	return []providerCase{
		{name: AWS, cloud: testcloud.NewAWS, list: "DescribeRouteTables", check: "DescribeRouteTables",
			create: "CreateRoute", remove: "DeleteRoute", table: "rtb-main", self: "eni-1",
			clock: "RequestExpired", status: 400, denied: "UnauthorizedOperation", form: "text/xml",
			secrets: []string{"AKIDROLE", "role-secret", "role-token"}},
		{name: GCE, cloud: testcloud.NewGCE, list: "routes.list", check: "routes.get",
			create: "routes.insert", remove: "routes.delete", table: testcloud.GCENetwork, self: "node-1",
			clock: "authError", status: 401, denied: "forbidden", form: "application/json",
			secrets: []string{"gce-token"}},
		{name: Alibaba, cloud: testcloud.NewAlibaba, list: "DescribeRouteEntryList", check: "DescribeRouteEntryList",
			create: "CreateRouteEntry", remove: "DeleteRouteEntry", table: "vtb-system", self: "i-1",
			clock: "InvalidTimeStamp.Expired", status: 400, denied: "Forbidden.RAM", form: "application/json",
			secrets: []string{"STS.role", "role-secret", "role-token"}},
		{name: Tencent, cloud: testcloud.NewTencent, list: "DescribeRouteTables", check: "DescribeRouteTables",
			create: "CreateRoutes", remove: "DeleteRoutes", table: "rtb-first", self: "172.31.0.1",
			clock: "AuthFailure.SignatureExpire", status: 200, denied: "UnauthorizedOperation", form: "application/json",
			secrets: []string{"AKIDrole", "role-secret", "role-token"}},
	}
}

type providerCase struct {
	name                 string
	cloud                func() *testcloud.Cloud
	list, create, remove string   // calls
	check                string   // call of a check of routes in place
	table, self          string   // route table, and target of routes to this node
	clock                string   // code of an error of clocks
	status               int      // of that
	denied               string   // code of an error of permissions
	form                 string   // content type of answers
	secrets              []string // of the role
}

// each runs a test for each cloud.
func each(t *testing.T, f func(t *testing.T, p providerCase)) {
	for _, p := range providers() {
		t.Run(p.name, func(t *testing.T) { f(t, p) })
	}
}

func TestNoMetadataService(t *testing.T) {
	each(t, func(t *testing.T, p providerCase) {
		c := p.cloud()
		r := prepare(t, Config{Provider: p.name}, c)
		c.Metadata.Close()
		r.Set(me())
		r.run(t)
		text := r.awaitError(t, Unavailable)
		wantText(t, text, "metadata: ")
		wantText(t, text, "is this a")
		if r.Status().InPlace {
			t.Error("in place")
		}
	})
}

// TestMetadataFails has the metadata service fail for a while.
func TestMetadataFails(t *testing.T) {
	each(t, func(t *testing.T, p providerCase) {
		c := p.cloud()
		c.Fail("metadata", testcloud.Failure{Status: 400}, testcloud.Failure{Status: 400}, testcloud.Failure{HTML: true},
			testcloud.Failure{HTML: true}, testcloud.Failure{HTML: true})
		start(t, Config{Provider: p.name}, c).awaitInPlace(t)
	})
}

// TestMissingItems has items of the metadata missing, one after the other.
func TestMissingItems(t *testing.T) {
	for _, x := range []struct {
		provider, item string
		cloud          func() *testcloud.Cloud
	}{
		{AWS, "placement/region", testcloud.NewAWS},
		{AWS, "network/interfaces/macs/02:00:00:00:00:01/subnet-id", testcloud.NewAWS},
		{GCE, "instance/zone", testcloud.NewGCE},
		{GCE, "project/project-id", testcloud.NewGCE},
		{Alibaba, "region-id", testcloud.NewAlibaba},
		{Alibaba, "network/interfaces/macs/00:16:3e:00:00:01/vpc-id", testcloud.NewAlibaba},
		{Tencent, "placement/region", testcloud.NewTencent},
	} {
		t.Run(x.provider+" "+x.item, func(t *testing.T) {
			c := x.cloud()
			c.DeleteItem(x.item)
			r := start(t, Config{Provider: x.provider}, c)
			wantText(t, r.awaitError(t, Unavailable), "metadata: "+x.item+": not there")
		})
	}
}

// TestHTMLAnswers has a proxy answer in place of the API, with an error and with success.
func TestHTMLAnswers(t *testing.T) {
	each(t, func(t *testing.T, p providerCase) {
		for _, status := range []int{200, 403, 502} {
			c := p.cloud()
			c.Always(p.list, testcloud.Failure{HTML: true, Status: status})
			r := start(t, Config{Provider: p.name}, c)
			text := r.awaitError(t, Unavailable)
			wantText(t, text, fmt.Sprintf("%s: answer with status %d is text/html instead of ", p.list, status))
			wantText(t, text, "is there a proxy?")
			c.Heal()
			r.awaitInPlace(t)
		}
	})
}

// TestNoAnswer has calls that get no answer in time.
func TestNoAnswer(t *testing.T) {
	each(t, func(t *testing.T, p providerCase) {
		c := p.cloud()
		c.Fail(p.create, testcloud.Failure{Hang: true})
		r := prepare(t, Config{Provider: p.name}, c)
		r.client().http.Timeout = 100 * time.Millisecond
		r.Set(me())
		r.run(t)
		r.awaitInPlace(t)
		wantText(t, r.log.String(), p.create+": "+strings.TrimPrefix(c.API.URL, "http://")+": no answer in time")
	})
}

// client returns the client of the provider.
func (r *rig) client() *client {
	switch p := r.provider.(type) {
	case *amazon:
		return p.client
	case *google:
		return p.client
	case *alibaba:
		return p.client
	case *tencent:
		return p.client
	}
	return nil
}

// TestAPIAway has the API gone: the route stays, so the node stays ready.
func TestAPIAway(t *testing.T) {
	each(t, func(t *testing.T, p providerCase) {
		c := p.cloud()
		r := start(t, Config{Provider: p.name}, c)
		before := r.awaitInPlace(t)
		c.Always(p.check, testcloud.Failure{Drop: true})
		r.awaitError(t, Unavailable)
		if s := r.Status(); !s.InPlace || !s.Since.Equal(before.Since) {
			t.Errorf("%+v", s)
		}
	})
}

func TestClockSkew(t *testing.T) {
	each(t, func(t *testing.T, p providerCase) {
		c := p.cloud()
		c.Always(p.list, testcloud.Failure{Status: p.status, Code: p.clock, Message: "expired", Skew: -20 * time.Minute})
		r := start(t, Config{Provider: p.name}, c)
		wantText(t, r.awaitError(t, Credentials), p.clock+": expired: the clock of this node is 20m")
	})
}

// TestRetryAfter has the pause that the cloud asks for.
func TestRetryAfter(t *testing.T) {
	m := &Manager{pace: defaultPace()}
	for range 100 {
		if d := m.delay(0, &Error{RetryAfter: 7 * time.Second}); d != 7*time.Second {
			t.Errorf("pause %v", d)
		}
		if d := m.delay(0, &Error{RetryAfter: time.Hour}); d != time.Minute {
			t.Errorf("pause %v", d)
		}
	}
}

// TestDelay has pauses that double up to the longest, of which half is random.
func TestDelay(t *testing.T) {
	m := &Manager{pace: defaultPace()}
	for attempt, want := range map[int]time.Duration{
		0: time.Second, 1: 2 * time.Second, 5: 32 * time.Second, 6: time.Minute, 1000: time.Minute,
	} {
		seen := map[time.Duration]bool{}
		for range 100 {
			d := m.delay(attempt, &Error{})
			if d < want/2 || d > want {
				t.Errorf("attempt %d: %v, want %v to %v", attempt, d, want/2, want)
			}
			seen[d] = true
		}
		if len(seen) < 50 {
			t.Errorf("attempt %d: only %d different pauses", attempt, len(seen))
		}
	}
}

// TestSecretsStayHidden has configured keys that the cloud refuses, and repeats in its message.
func TestSecretsStayHidden(t *testing.T) {
	for _, x := range []struct {
		provider string
		cloud    func() *testcloud.Cloud
		want     string
	}{
		{Alibaba, testcloud.NewAlibaba, "SignatureDoesNotMatch: the signature does not match: is AccessKeySecret right?"},
		{Tencent, testcloud.NewTencent, "AuthFailure.SignatureFailure: the signature does not match"},
	} {
		t.Run(x.provider, func(t *testing.T) {
			c := x.cloud()
			c.SetKey("LTAI-config", testcloud.Key{Secret: "right"})
			config := Config{Provider: x.provider, AccessKeyID: "LTAI-config", AccessKeySecret: "hunter2-XYZ"}
			r := start(t, config, c)
			wantText(t, r.awaitError(t, Credentials), x.want)
			c.Always("DescribeRouteTables", testcloud.Failure{Status: 400, Code: "Odd", Message: "key LTAI-config secret hunter2-XYZ"})
			c.Always("DescribeRouteTableList", testcloud.Failure{Status: 400, Code: "Odd", Message: "key LTAI-config secret hunter2-XYZ"})
			wantText(t, r.awaitError(t, Other), "Odd: key (hidden) secret (hidden)")
			status, err := json.Marshal(r.Status())
			if err != nil {
				t.Fatal(err)
			}
			shown, err := json.Marshal(config)
			if err != nil {
				t.Fatal(err)
			}
			log := &logged{}
			slog.New(slog.NewTextHandler(log, nil)).Info("x", "config", config, "secret", config.AccessKeySecret)
			all := r.log.String() + string(status) + string(shown) + log.String() +
				fmt.Sprintf("%v %+v %#v %s", config, config, config, config) + r.Status().Err.Error()
			for _, secret := range []string{"LTAI-config", "hunter2-XYZ"} {
				if strings.Contains(all, secret) {
					t.Errorf("%s is shown in %s", secret, all)
				}
			}
		})
	}
}

// TestConfiguredKeys uses those of the config, or of the environment.
func TestConfiguredKeys(t *testing.T) {
	for provider, cloud := range map[string]func() *testcloud.Cloud{Alibaba: testcloud.NewAlibaba, Tencent: testcloud.NewTencent} {
		t.Run(provider, func(t *testing.T) {
			c := cloud()
			c.DeleteItem("ram/")
			c.DeleteItem("cam/")
			c.SetKey("ID+=", testcloud.Key{Secret: "s/+= &"})
			r := start(t, Config{Provider: provider, AccessKeyID: "ID+=", AccessKeySecret: "s/+= &"}, c)
			r.awaitInPlace(t)
			r.stop()
			t.Setenv("ACCESS_KEY_ID", "ID+=")
			t.Setenv("ACCESS_KEY_SECRET", "s/+= &")
			c.RemoveRoute("rtb-first", me().Subnets[0])
			if k := configured(Config{Provider: provider}); k.id != "ID+=" || k.secret != "s/+= &" {
				t.Errorf("%+v", k)
			}
		})
	}
}

// TestRotatedRole has the role's keys replaced before their announced end.
func TestRotatedRole(t *testing.T) {
	for _, x := range []struct {
		provider, old, refusal string
		cloud                  func() *testcloud.Cloud
		rotate                 func(*testcloud.Cloud, string, testcloud.Key)
	}{
		{Alibaba, "STS.role", "InvalidSecurityToken.Expired", testcloud.NewAlibaba, (*testcloud.Cloud).SetAlibabaRole},
		{Tencent, "AKIDrole", "AuthFailure.TokenFailure", testcloud.NewTencent, (*testcloud.Cloud).SetTencentRole},
	} {
		t.Run(x.provider, func(t *testing.T) {
			c := x.cloud()
			r := start(t, Config{Provider: x.provider}, c)
			r.awaitInPlace(t)
			x.rotate(c, x.old, testcloud.Key{Secret: "next-secret", Token: "next-token"})
			r.await(t, "refusal", func(Status) bool { return strings.Contains(r.log.String(), x.refusal) })
			r.awaitInPlace(t)
		})
	}
}

// TestRepeatedErrorIsLoggedOnce keeps the log short while an error lasts.
func TestRepeatedErrorIsLoggedOnce(t *testing.T) {
	each(t, func(t *testing.T, p providerCase) {
		c := p.cloud()
		c.Always(p.list, testcloud.Failure{Status: 500, Code: "InternalError", Message: "oops"})
		r := start(t, Config{Provider: p.name}, c)
		r.await(t, "20 calls", func(Status) bool { return c.Count(p.list) >= 20 })
		if n := strings.Count(r.log.String(), "cannot check or change"); n != 1 {
			t.Errorf("logged %d times\n%s", n, r.log)
		}
	})
}

// TestListLags has lists that lack a created route for a while: it is created once.
func TestListLags(t *testing.T) {
	each(t, func(t *testing.T, p providerCase) {
		c := p.cloud()
		c.Delay(300 * time.Millisecond)
		r := start(t, Config{Provider: p.name}, c)
		wantText(t, r.awaitError(t, Pending), "not listed yet")
		if r.Status().InPlace {
			t.Error("in place before it is listed")
		}
		r.awaitInPlace(t)
		if n := c.Count(p.create); n != 1 {
			t.Errorf("%d creations", n)
		}
	})
}

// errorCase is a failure of a call and the error that it has to be.
type errorCase struct {
	name, call string
	failure    testcloud.Failure
	kind       Kind
	want       string
}

// testErrors has the calls of a provider fail for a while.
func testErrors(t *testing.T, provider string, cloud func() *testcloud.Cloud, cases []errorCase) {
	for _, x := range cases {
		t.Run(x.name, func(t *testing.T) {
			c := cloud()
			c.Always(x.call, x.failure)
			r := start(t, Config{Provider: provider}, c)
			wantText(t, r.awaitError(t, x.kind), x.want)
			c.Heal()
			r.awaitInPlace(t)
		})
	}
}
