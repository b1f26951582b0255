package cloud

import (
	"bytes"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/ctrl/backend/cloud/testcloud"
)

func TestTencentRequests(t *testing.T) {
	c := testcloud.NewTencent()
	r := start(t, Config{Provider: Tencent}, c)
	s := r.awaitInPlace(t)
	r.stop()
	r.awaitRoutes(t, "rtb-first", "10.5.1.0/24 via 172.31.0.1")
	r.awaitRoutes(t, "rtb-second")
	want := []string{
		`DescribeRouteTables {"Filters":[{"Name":"vpc-id","Values":["vpc-1"]}],"Limit":"100","Offset":"0"}`,
		`DescribeRouteTables {"Filters":[{"Name":"vpc-id","Values":["vpc-1"]}],"Limit":"100","Offset":"1"}`,
		`DescribeRouteTables {"Filters":[{"Name":"route-table-id","Values":["rtb-first"]}],"Limit":"100","Offset":"0"}`,
		`CreateRoutes {"RouteTableId":"rtb-first","Routes":[{"DestinationCidrBlock":"10.5.1.0/24","GatewayType":"NORMAL_CVM","GatewayId":"172.31.0.1"}]}`,
		`DescribeRouteTables {"Filters":[{"Name":"route-table-id","Values":["rtb-first"]}],"Limit":"100","Offset":"0"}`,
	}
	got := c.Requests()
	if got = got[:min(len(got), len(want))]; !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if s.Provider != Tencent || !slices.Equal(s.RouteTables, []string{"rtb-first"}) {
		t.Errorf("status %+v", s)
	}
}

func TestTencentElsewhere(t *testing.T) {
	for _, disabled := range []bool{false, true} {
		c := testcloud.NewTencent()
		c.AddRoute("rtb-first", testcloud.Route{Dst: prefixes("10.5.2.0/24")[0], Target: "172.31.0.9"})
		target := "172.31.0.9"
		if disabled {
			target = "172.31.0.1"
		}
		c.AddRoute("rtb-first", testcloud.Route{Dst: me().Subnets[0], Target: target, BlackHole: disabled})
		r := start(t, Config{Provider: Tencent}, c)
		r.awaitInPlace(t)
		r.awaitRoutes(t, "rtb-first", "10.5.1.0/24 via 172.31.0.1", "10.5.2.0/24 via 172.31.0.9")
		if c.Count(`DeleteRoutes {"RouteTableId":"rtb-first","Routes":[{"RouteId":2}]}`) != 1 {
			t.Error(c.Requests())
		}
	}
}

func TestTencentErrors(t *testing.T) {
	testErrors(t, Tencent, testcloud.NewTencent, []errorCase{
		{"permission", "CreateRoutes", testcloud.Failure{Code: "UnauthorizedOperation",
			Message: "You are not authorized to perform operation (vpc:CreateRoutes)"}, Denied, "the permission vpc:CreateRoutes is missing"},
		{"permission of CAM", "DescribeRouteTables", testcloud.Failure{Code: "AuthFailure.UnauthorizedOperation"},
			Denied, "the permission vpc:DescribeRouteTables is missing"},
		{"throttled", "CreateRoutes", testcloud.Failure{Code: "RequestLimitExceeded.IPLimitExceeded", Message: "slow down"},
			Throttled, "slow down"},
		{"quota", "CreateRoutes", testcloud.Failure{Code: "LimitExceeded", Message: "The number of routes exceeds 50."},
			Quota, "The number of routes exceeds 50: raise the quota of routes per route table"},
		{"unavailable", "DescribeRouteTables", testcloud.Failure{Code: "InternalServerError"}, Unavailable, "InternalServerError"},
	})
}

func TestTencentNoTable(t *testing.T) {
	c := testcloud.NewTencent()
	c.SetItem("network/interfaces/macs/52:54:00:00:00:01/vpc-id", "vpc-2")
	r := start(t, Config{Provider: Tencent}, c)
	wantText(t, r.awaitError(t, Other), "VPC vpc-2 has no route table")
}

// TestTencentSignatureChanges has every signed part change the signature.
func TestTencentSignatureChanges(t *testing.T) {
	sign := func(change func(r *http.Request, body *[]byte, k *keyPair, at *time.Time)) string {
		body, k, at := []byte("{}"), keyPair{id: "a", secret: "b"}, time.Unix(1700000000, 0)
		r, err := http.NewRequest(http.MethodPost, "https://vpc.tencentcloudapi.com/", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		change(r, &body, &k, &at)
		r.Body = io.NopCloser(bytes.NewReader(body))
		signTencent(r, body, k, at)
		_, signature, _ := strings.Cut(r.Header.Get("Authorization"), "Signature=")
		return signature
	}
	seen := map[string]bool{}
	for _, change := range []func(r *http.Request, body *[]byte, k *keyPair, at *time.Time){
		func(*http.Request, *[]byte, *keyPair, *time.Time) {},
		func(r *http.Request, _ *[]byte, _ *keyPair, _ *time.Time) { r.URL.Host = "elsewhere" },
		func(_ *http.Request, b *[]byte, _ *keyPair, _ *time.Time) { *b = []byte("{ }") },
		func(_ *http.Request, _ *[]byte, k *keyPair, _ *time.Time) { k.secret = "c" },
		func(_ *http.Request, _ *[]byte, _ *keyPair, at *time.Time) { *at = at.Add(time.Second) },
	} {
		seen[sign(change)] = true
	}
	if len(seen) != 5 {
		t.Errorf("%d signatures, want 5", len(seen))
	}
}
