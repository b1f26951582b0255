package cloud

import (
	"slices"
	"strings"
	"testing"

	"weft/ctrl/backend/cloud/testcloud"
)

func TestAlibabaRequests(t *testing.T) {
	c := testcloud.NewAlibaba()
	r := start(t, Config{Provider: Alibaba}, c)
	s := r.awaitInPlace(t)
	r.stop()
	r.awaitRoutes(t, "vtb-system", "10.5.1.0/24 via i-1")
	want := []string{
		"DescribeRouteTableList PageNumber=1&PageSize=50&VpcId=vpc-1",
		"DescribeRouteTableList PageNumber=2&PageSize=50&VpcId=vpc-1",
		"DescribeRouteEntryList MaxResult=100&RouteEntryType=Custom&RouteTableId=vtb-system",
		"CreateRouteEntry DestinationCidrBlock=10.5.1.0/24&NextHopId=i-1&NextHopType=Instance&RouteTableId=vtb-system",
		"DescribeRouteEntryList MaxResult=100&RouteEntryType=Custom&RouteTableId=vtb-system",
	}
	got := c.Requests()
	if got = got[:min(len(got), len(want))]; !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if s.Provider != Alibaba || !slices.Equal(s.RouteTables, []string{"vtb-system"}) {
		t.Errorf("status %+v", s)
	}
}

func TestAlibabaTableOfSwitch(t *testing.T) {
	c := testcloud.NewAlibaba()
	c.AddTable("vtb-own", "vsw-1") // on the third page
	r := start(t, Config{Provider: Alibaba}, c)
	r.awaitInPlace(t)
	r.awaitRoutes(t, "vtb-own", "10.5.1.0/24 via i-1")
}

func TestAlibabaElsewhereAndPages(t *testing.T) {
	c := testcloud.NewAlibaba()
	for _, dst := range []string{"10.5.2.0/24", "10.5.3.0/24", "10.5.1.0/24"} {
		c.AddRoute("vtb-system", testcloud.Route{Dst: prefixes(dst)[0], Target: "i-9"})
	}
	r := start(t, Config{Provider: Alibaba}, c)
	r.awaitInPlace(t)
	r.awaitRoutes(t, "vtb-system", "10.5.1.0/24 via i-1", "10.5.2.0/24 via i-9", "10.5.3.0/24 via i-9")
	if c.Count("DeleteRouteEntry RouteEntryId=3&RouteTableId=vtb-system") != 1 {
		t.Error(c.Requests())
	}
}

func TestAlibabaHardenedMetadata(t *testing.T) {
	c := testcloud.NewAlibaba()
	c.Set("hardened", "yes")
	r := start(t, Config{Provider: Alibaba}, c)
	r.awaitInPlace(t)
}

// TestAlibabaSecondInterface has the node's address on another interface than the primary one.
func TestAlibabaSecondInterface(t *testing.T) {
	c := testcloud.NewAlibaba()
	c.SetItem("network/interfaces/macs/", "00:16:3e:00:00:02/\n00:16:3e:00:00:01/\n")
	for item, v := range map[string]string{
		"vpc-id": "vpc-1", "vswitch-id": "vsw-2", "network-interface-id": "eni-2", "private-ipv4s": `["172.31.9.8","172.31.9.9"]`,
	} {
		c.SetItem("network/interfaces/macs/00:16:3e:00:00:02/"+item, v)
	}
	r := prepare(t, Config{Provider: Alibaba}, c)
	n := me()
	n.Addrs = append(n.Addrs[:0:0], prefixes("172.31.9.9/32")[0].Addr())
	r.Set(n)
	r.run(t)
	r.awaitInPlace(t)
	r.awaitRoutes(t, "vtb-system", "10.5.1.0/24 via eni-2")
	if c.Count("CreateRouteEntry DestinationCidrBlock=10.5.1.0/24&NextHopId=eni-2&NextHopType=NetworkInterface") != 1 {
		t.Error(c.Requests())
	}
}

func TestAlibabaErrors(t *testing.T) {
	testErrors(t, Alibaba, testcloud.NewAlibaba, []errorCase{
		{"permission", "CreateRouteEntry", testcloud.Failure{Status: 403, Code: "Forbidden.RAM",
			Message: "User not authorized to operate on the specified resource, or this API doesn't support RAM."},
			Denied, "the permission vpc:CreateRouteEntry is missing"},
		{"throttled", "DescribeRouteEntryList", testcloud.Failure{Status: 400, Code: "Throttling.User",
			Message: "Request was denied due to user flow control."}, Throttled, "Throttling.User"},
		{"quota", "CreateRouteEntry", testcloud.Failure{Status: 400, Code: "QuotaExceeded.RouteEntry", Message: "full"},
			Quota, "full: raise the quota of custom route entries"},
		{"busy", "CreateRouteEntry", testcloud.Failure{Status: 400, Code: "TaskConflict", Message: "busy"}, Pending, "TaskConflict: busy"},
		{"unavailable", "DescribeRouteTableList", testcloud.Failure{Status: 503, Code: "ServiceUnavailable"}, Unavailable, "ServiceUnavailable"},
	})
}

// TestAlibabaEntryPending has a created entry that is listed, but not in force yet.
func TestAlibabaEntryPending(t *testing.T) {
	c := testcloud.NewAlibaba()
	c.Set("status", "Pending")
	r := start(t, Config{Provider: Alibaba}, c)
	wantText(t, r.awaitError(t, Pending), "the route to 10.5.1.0/24 is Pending")
	if r.Status().InPlace {
		t.Error("in place")
	}
	c.Set("status", "")
	r.awaitInPlace(t)
}

func TestAlibabaNoRole(t *testing.T) {
	c := testcloud.NewAlibaba()
	c.DeleteItem("ram/")
	r := start(t, Config{Provider: Alibaba}, c)
	wantText(t, r.awaitError(t, Credentials), "this instance has no role: attach one, or set AccessKeyID and AccessKeySecret")
}

func TestAlibabaPercent(t *testing.T) {
	if got := percent("a b*~/+é"); got != "a%20b%2A~%2F%2B%C3%A9" {
		t.Error(got)
	}
}
