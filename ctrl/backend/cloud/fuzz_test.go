package cloud

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

// sameAnswer is a transport that has the same answer to all requests.
type sameAnswer struct {
	status   int
	form     string
	body     []byte
	requests int
}

func (s *sameAnswer) RoundTrip(r *http.Request) (*http.Response, error) {
	s.requests++
	return &http.Response{
		StatusCode: s.status, Status: http.StatusText(s.status), Request: r, Body: io.NopCloser(bytes.NewReader(s.body)),
		Header: http.Header{"Content-Type": {s.form}, "Metadata-Flavor": {"Google"}, "Retry-After": {"1"}},
	}, nil
}

// testKeys are the keys of fuzz targets. They are in no error.
var testKeys = keyPair{id: "AKIDFUZZED", secret: "fuzzed+secret", token: "fuzzed/token"}

// fuzzProviders returns located providers with keys whose APIs and metadata have one answer each.
func fuzzProviders(t *testing.T, api, metadata *sameAnswer) map[string]provider {
	t.Helper()
	list := map[string]provider{}
	for _, name := range []string{AWS, GCE, Alibaba, Tencent} {
		m, err := newManager(Config{Provider: name}, slog.New(slog.DiscardHandler), endpoints{api: "https://api.example", metadata: "http://metadata.example"})
		if err != nil {
			t.Fatal(err)
		}
		switch p := m.provider.(type) {
		case *amazon:
			p.client.http, p.metadata.http = answers(api), answers(metadata)
			p.keys.configured = testKeys
			p.self = awsInstance{id: "i-1", region: "eu", domain: "example", eni: "eni-1", subnet: "subnet-1", vpc: "vpc-1"}
		case *google:
			p.client.http, p.metadata.http = answers(api), answers(metadata)
			p.token, p.expires, p.names = testKeys.token, time.Now().Add(time.Hour), map[netip.Prefix]string{}
			p.self = gceInstance{project: "p", zone: "z", name: "node-1", network: "projects/p/global/networks/default"}
		case *alibaba:
			p.client.http, p.metadata.http = answers(api), answers(metadata)
			p.keys.configured = testKeys
			p.self = aliInstance{id: "i-1", region: "cn", vpc: "vpc-1", hop: "i-1"}
		case *tencent:
			p.client.http, p.metadata.http = answers(api), answers(metadata)
			p.keys.configured = testKeys
			p.region, p.vpc, p.hop = "ap", "vpc-1", "172.31.0.1"
		}
		list[name] = m.provider
	}
	return list
}

func answers(a *sameAnswer) *http.Client { return &http.Client{Transport: a, CheckRedirect: stay} }

// checkFuzzed fails for an error that shows a key, is too long, or has no call.
func checkFuzzed(t *testing.T, name string, err error) {
	t.Helper()
	if err == nil {
		return
	}
	text := err.Error()
	for _, key := range []string{testKeys.token, testKeys.secret, testKeys.id} {
		if name == GCE && key != testKeys.token {
			break // it has only that
		}
		if strings.Contains(text, key) {
			t.Errorf("%s: the error shows %s: %s", name, key, text)
		}
	}
	if len(text) > 4*maxMessage {
		t.Errorf("%s: the error has %d bytes", name, len(text))
	}
	var e *Error
	if !errors.As(err, &e) {
		t.Errorf("%s: %T %v", name, err, err)
	}
}

// FuzzAnswers has the APIs answer lists and changes with any bytes.
func FuzzAnswers(f *testing.F) {
	for _, body := range []string{
		`<DescribeRouteTablesResponse><routeTableSet><item><routeTableId>table</routeTableId><routeSet><item>` +
			`<destinationCidrBlock>10.5.1.0/24</destinationCidrBlock><networkInterfaceId>eni-1</networkInterfaceId>` +
			`<state>active</state></item></routeSet></item></routeTableSet><nextToken>x</nextToken></DescribeRouteTablesResponse>`,
		`<Response><Errors><Error><Code>UnauthorizedOperation</Code><Message>AKIDFUZZED</Message></Error></Errors></Response>`,
		`{"kind":"compute#routeList","items":[{"name":"flannel-10-5-1-0-24","network":"x/projects/p/global/networks/default",` +
			`"destRange":"10.5.1.0/24","nextHopInstance":"x/projects/p/zones/z/instances/node-1","warnings":[{"code":"X"}]}],"nextPageToken":"y"}`,
		`{"kind":"compute#route","network":"x/projects/p/global/networks/default","destRange":"fd00::/64"}`,
		`{"kind":"compute#operation","status":"DONE","error":{"errors":[{"code":"QUOTA_EXCEEDED","message":"fuzzed/token"}]}}`,
		`{"error":{"message":"Required 'compute.routes.list' permission","errors":[{"reason":"forbidden"}]}}`,
		`{"RequestId":"1","NextToken":"","RouteEntrys":{"RouteEntry":[{"RouteEntryId":"1","DestinationCidrBlock":"10.5.1.0/24",` +
			`"Status":"Available","NextHops":{"NextHop":[{"NextHopId":"i-1","NextHopType":"Instance"}]}}]}}`,
		`{"RequestId":"1","TotalCount":2,"RouterTableList":{"RouterTableListType":[{"RouteTableId":"t","RouteTableType":"System"}]}}`,
		`{"Code":"Forbidden.RAM","Message":"fuzzed+secret"}`,
		`{"Response":{"RequestId":"1","TotalCount":9,"RouteTableSet":[{"RouteTableId":"table","RouteSet":[{"RouteId":1,` +
			`"DestinationCidrBlock":"10.5.1.0/24","GatewayType":"NORMAL_CVM","GatewayId":"172.31.0.1","Enabled":true}]}]}}`,
		`{"Response":{"RequestId":"1","Error":{"Code":"AuthFailure.SignatureFailure","Message":"fuzzed%2Btoken"}}}`,
		`<html>fuzzed/token</html>`, `null`, ``,
	} {
		for _, status := range []int{200, 400, 503} {
			f.Add(status, "application/json", []byte(body))
		}
	}
	f.Fuzz(func(t *testing.T, status int, form string, body []byte) {
		if status < 200 || status > 599 {
			return
		}
		api := &sameAnswer{status: status, form: form, body: body}
		for name, p := range fuzzProviders(t, api, &sameAnswer{status: 404}) {
			dst := me().Subnets[0]
			for _, dsts := range [][]netip.Prefix{nil, {dst}} {
				list, err := p.routes(t.Context(), "table", dsts)
				checkFuzzed(t, name, err)
				for _, r := range list {
					if !r.dst.IsValid() {
						t.Errorf("%s: route %+v", name, r)
					}
				}
				if err == nil {
					changes(list, me())
				}
			}
			// An operation of GCE may take two minutes.
			limited, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
			checkFuzzed(t, name, p.create(limited, "table", dst))
			checkFuzzed(t, name, p.remove(limited, "table", route{dst: dst, id: "1"}))
			cancel()
			switch p := p.(type) {
			case *amazon:
				_, err := p.tables(t.Context())
				checkFuzzed(t, name, err)
			case *alibaba:
				_, err := p.tables(t.Context())
				checkFuzzed(t, name, err)
			case *tencent:
				_, err := p.describe(t.Context(), "vpc-id", "vpc-1")
				checkFuzzed(t, name, err)
			}
		}
		if limit := 40 * maxPages; api.requests > limit {
			t.Errorf("%d requests", api.requests)
		}
	})
}

// FuzzMetadata has metadata services answer everything with the same bytes.
func FuzzMetadata(f *testing.F) {
	for _, text := range []string{
		"02:00:00:00:00:01/\n02:00:00:00:00:02/", "eu-test-1", `["172.31.0.1"]`, "0/\n1/",
		`{"AccessKeyId":"a","SecretAccessKey":"b","Token":"c","Expiration":"2026-01-02T03:04:05Z"}`,
		`{"access_token":"x","expires_in":3599}`, `{"Code":"Failed","Message":"No."}`, "projects/1/zones/z", "<html>", "", "a b/../?#%",
	} {
		f.Add(200, []byte(text))
	}
	f.Add(404, []byte("none"))
	f.Fuzz(func(t *testing.T, status int, text []byte) {
		if status < 200 || status > 599 {
			return
		}
		metadata := &sameAnswer{status: status, body: text}
		api := &sameAnswer{status: 400, body: []byte("{}")}
		for name, p := range fuzzProviders(t, api, metadata) {
			_, err := p.locate(t.Context(), me())
			if err == nil {
				t.Errorf("%s: no error", name)
			}
			checkFuzzed(t, name, err)
			switch p := p.(type) {
			case *amazon:
				p.keys.configured = keyPair{}
				_, err := p.keys.get(t.Context())
				checkFuzzed(t, name, err)
			case *alibaba:
				p.keys.configured = keyPair{}
				k, err := p.keys.get(t.Context())
				checkFuzzed(t, name, err)
				if err == nil && (k.id == "" || k.secret == "") {
					t.Error("no keys and no error")
				}
			case *google:
				_, err := p.authorization(t.Context())
				checkFuzzed(t, name, err)
			}
		}
	})
}

// FuzzAssumeRole has STS answer with any bytes.
func FuzzAssumeRole(f *testing.F) {
	f.Add(200, []byte(`<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>a</AccessKeyId>`+
		`<SecretAccessKey>b</SecretAccessKey><SessionToken>c</SessionToken><Expiration>2026-01-02T03:04:05Z</Expiration>`+
		`</Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>`))
	f.Add(400, []byte(`<ErrorResponse><Error><Code>InvalidIdentityToken</Code><Message>fuzzed/token</Message></Error></ErrorResponse>`))
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		k, err := answer{status: status, body: body, keys: testKeys}.decodeRole()
		checkFuzzed(t, AWS, err)
		if err == nil && (k.id == "" || k.secret == "") {
			t.Error("no keys and no error")
		}
	})
}

// FuzzSignature compares the encoding that Alibaba signs with one that goes byte by byte.
func FuzzSignature(f *testing.F) {
	f.Add("DestinationCidrBlock", "fd00::/64")
	f.Add("a b*~", "+é%\x00")
	f.Fuzz(func(t *testing.T, name, value string) {
		for _, text := range []string{name, value} {
			if got, want := percent(text), percentSlowly(text); got != want {
				t.Errorf("%q: %s, want %s", text, got, want)
			}
		}
		v := url.Values{name: {value}}
		got := strings.ReplaceAll(v.Encode(), "+", "%20")
		if want := percentSlowly(name) + "=" + percentSlowly(value); got != want {
			t.Errorf("%q=%q: %s, want %s", name, value, got, want)
		}
		signAlibaba(v, "X", testKeys, time.Now())
		if !slices.Contains(v["AccessKeyId"], testKeys.id) || v.Get("Signature") == "" {
			t.Error(v)
		}
	})
}

// percentSlowly is the twin of percent.
func percentSlowly(text string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for _, c := range []byte(text) {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-_.~", c) >= 0 {
			b.WriteByte(c)
		} else {
			b.Write([]byte{'%', hex[c>>4], hex[c&15]})
		}
	}
	return b.String()
}
