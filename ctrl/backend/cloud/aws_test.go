package cloud

import (
	"slices"
	"strings"
	"testing"

	"weft/ctrl/backend/cloud/testcloud"
)

const vpcRoute = "172.31.0.0/16 via local"

func TestAWSRequests(t *testing.T) {
	r := start(t, Config{Provider: AWS}, testcloud.NewAWS())
	s := r.awaitInPlace(t)
	r.stop()
	r.awaitRoutes(t, "rtb-main", vpcRoute, "10.5.1.0/24 via eni-1")
	want := []string{
		"DescribeRouteTables Filter.1.Name=association.subnet-id&Filter.1.Value.1=subnet-1",
		"DescribeRouteTables Filter.1.Name=association.subnet-id&Filter.1.Value.1=subnet-1&NextToken=page-0",
		"DescribeRouteTables Filter.1.Name=vpc-id&Filter.1.Value.1=vpc-1&Filter.2.Name=association.main&Filter.2.Value.1=true",
		"DescribeRouteTables Filter.1.Name=vpc-id&Filter.1.Value.1=vpc-1&Filter.2.Name=association.main&Filter.2.Value.1=true&NextToken=page-0",
		"ModifyInstanceAttribute InstanceId=i-1&SourceDestCheck.Value=false",
		"DescribeRouteTables RouteTableId.1=rtb-main",
		"DescribeRouteTables NextToken=page-0&RouteTableId.1=rtb-main",
		"CreateRoute DestinationCidrBlock=10.5.1.0/24&NetworkInterfaceId=eni-1&RouteTableId=rtb-main",
	}
	got := r.cloud.Requests()
	if got = got[:min(len(got), len(want))]; !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if s.Provider != AWS || !slices.Equal(s.RouteTables, []string{"rtb-main"}) || len(s.Notes) > 0 {
		t.Errorf("status %+v", s)
	}
}

func TestAWSTableOfSubnet(t *testing.T) {
	c := testcloud.NewAWS()
	c.AddTable("rtb-own", "subnet-1")
	r := start(t, Config{Provider: AWS}, c)
	r.awaitInPlace(t)
	r.awaitRoutes(t, "rtb-own", "10.5.1.0/24 via eni-1")
	r.awaitRoutes(t, "rtb-main", vpcRoute)
}

func TestAWSBothFamilies(t *testing.T) {
	r := prepare(t, Config{Provider: AWS}, testcloud.NewAWS())
	n := me()
	n.Subnets = prefixes("10.5.1.0/24", "fd00:5:0:1::/64")
	r.Set(n)
	r.run(t)
	r.awaitInPlace(t)
	r.awaitRoutes(t, "rtb-main", vpcRoute, "10.5.1.0/24 via eni-1", "fd00:5:0:1::/64 via eni-1")
}

func TestAWSConfiguredTables(t *testing.T) {
	c := testcloud.NewAWS()
	c.AddTable("rtb-a")
	c.AddTable("rtb-b")
	r := start(t, Config{Provider: AWS, RouteTables: []string{"rtb-a", "rtb-b"}}, c)
	r.awaitInPlace(t)
	for _, table := range []string{"rtb-a", "rtb-b"} {
		r.awaitRoutes(t, table, "10.5.1.0/24 via eni-1")
	}
	r.awaitRoutes(t, "rtb-main", vpcRoute)
}

// TestAWSOneTableMissing has one of two tables served and the other named.
func TestAWSOneTableMissing(t *testing.T) {
	r := start(t, Config{Provider: AWS, RouteTables: []string{"rtb-typo", "rtb-main"}}, testcloud.NewAWS())
	text := r.awaitError(t, Other)
	wantText(t, text, "route table rtb-typo: DescribeRouteTables: InvalidRouteTableID.NotFound: ")
	wantText(t, text, "see config key RouteTableID")
	r.awaitRoutes(t, "rtb-main", vpcRoute, "10.5.1.0/24 via eni-1")
	if r.Status().InPlace {
		t.Error("in place without one of the tables")
	}
}

func TestAWSRouteElsewhere(t *testing.T) {
	c := testcloud.NewAWS()
	c.AddRoute("rtb-main", testcloud.Route{Dst: me().Subnets[0], Target: "eni-9"})
	r := start(t, Config{Provider: AWS}, c)
	r.awaitInPlace(t)
	r.awaitRoutes(t, "rtb-main", vpcRoute, "10.5.1.0/24 via eni-1")
	if c.Count("ReplaceRoute") != 1 || c.Count("DeleteRoute")+c.Count("CreateRoute") != 0 {
		t.Error(c.Requests())
	}
	wantText(t, r.log.String(), "target=eni-9")
}

func TestAWSBlackHole(t *testing.T) {
	c := testcloud.NewAWS()
	c.AddRoute("rtb-main", testcloud.Route{Dst: me().Subnets[0], Target: "eni-9", BlackHole: true})
	c.AddRoute("rtb-main", testcloud.Route{Dst: prefixes("10.5.2.0/24")[0], Target: "eni-8", BlackHole: true})
	r := start(t, Config{Provider: AWS}, c)
	r.awaitInPlace(t)
	// That of another node is its own.
	r.awaitRoutes(t, "rtb-main", vpcRoute, "10.5.1.0/24 via eni-1", "10.5.2.0/24 via eni-8")
	if c.Count("DeleteRoute") != 1 || c.Count("CreateRoute") != 1 {
		t.Error(c.Requests())
	}
}

// TestAWSFormerSubnet removes the route of a lease that this node had, and no other.
func TestAWSFormerSubnet(t *testing.T) {
	c := testcloud.NewAWS()
	for _, x := range []struct{ dst, target string }{
		{"10.5.7.0/24", "eni-1"}, {"10.5.8.0/24", "eni-9"}, {"10.9.1.0/24", "eni-1"},
	} {
		c.AddRoute("rtb-main", testcloud.Route{Dst: prefixes(x.dst)[0], Target: x.target})
	}
	r := start(t, Config{Provider: AWS}, c)
	r.awaitInPlace(t)
	r.awaitRoutes(t, "rtb-main", vpcRoute, "10.5.1.0/24 via eni-1", "10.5.8.0/24 via eni-9", "10.9.1.0/24 via eni-1")
	n := me()
	n.Subnets = prefixes("10.5.3.0/24")
	r.Set(n)
	r.awaitRoutes(t, "rtb-main", vpcRoute, "10.5.3.0/24 via eni-1", "10.5.8.0/24 via eni-9", "10.9.1.0/24 via eni-1")
}

func TestAWSRepair(t *testing.T) {
	r := start(t, Config{Provider: AWS}, testcloud.NewAWS())
	r.pace.settle = 0
	r.awaitInPlace(t)
	r.cloud.RemoveRoute("rtb-main", me().Subnets[0])
	r.awaitRoutes(t, "rtb-main", vpcRoute, "10.5.1.0/24 via eni-1")
}

func TestAWSTwoInterfaces(t *testing.T) {
	c := testcloud.NewAWS()
	c.SetItem("network/interfaces/macs/", "02:00:00:00:00:02/\n02:00:00:00:00:01/")
	for item, v := range map[string]string{
		"interface-id": "eni-2", "subnet-id": "subnet-2", "vpc-id": "vpc-1", "local-ipv4s": "172.31.9.9\n172.31.9.10",
	} {
		c.SetItem("network/interfaces/macs/02:00:00:00:00:02/"+item, v)
	}
	r := start(t, Config{Provider: AWS}, c)
	r.awaitInPlace(t)
	r.awaitRoutes(t, "rtb-main", vpcRoute, "10.5.1.0/24 via eni-1")
	if c.Count("ModifyNetworkInterfaceAttribute NetworkInterfaceId=eni-1&") != 1 || c.Count("ModifyInstanceAttribute") != 0 {
		t.Error(c.Requests())
	}
	// The interface to the other nodes changes to the second one, and to an unknown one.
	n := me()
	n.Addrs = n.Addrs[:0:0]
	n.Addrs = append(n.Addrs, prefixes("172.31.9.10/32")[0].Addr())
	r.Set(n)
	r.awaitRoutes(t, "rtb-main", vpcRoute, "10.5.1.0/24 via eni-2")
	n.Addrs = append(n.Addrs[:0:0], prefixes("192.0.2.1/32")[0].Addr())
	r.Set(n)
	wantText(t, r.awaitError(t, Other), "none of the instance's 2 interfaces has the address [192.0.2.1] of this node")
}

func TestAWSDenied(t *testing.T) {
	for _, action := range []string{"DescribeRouteTables", "CreateRoute"} {
		t.Run(action, func(t *testing.T) {
			c := testcloud.NewAWS()
			c.Always(action, testcloud.Failure{Status: 403, Code: "UnauthorizedOperation",
				Message: "You are not authorized to perform this operation. Encoded authorization failure message: " + strings.Repeat("x7Y", 400)})
			r := start(t, Config{Provider: AWS}, c)
			text := r.awaitError(t, Denied)
			wantText(t, text, action+": UnauthorizedOperation: You are not authorized to perform this operation: "+
				"the permission ec2:"+action+" is missing")
			if r.Status().InPlace {
				t.Error("in place")
			}
			c.Heal()
			r.awaitInPlace(t)
		})
	}
}

// TestAWSCheckNotTurnedOff has a policy without that permission: the operator may have done it.
func TestAWSCheckNotTurnedOff(t *testing.T) {
	c := testcloud.NewAWS()
	c.Always("ModifyInstanceAttribute", testcloud.Failure{Status: 403, Code: "UnauthorizedOperation"})
	r := start(t, Config{Provider: AWS}, c)
	s := r.awaitInPlace(t)
	if len(s.Notes) != 1 || !strings.Contains(s.Notes[0], "the permission ec2:ModifyInstanceAttribute is missing") {
		t.Errorf("notes %q", s.Notes)
	}
}

func TestAWSThrottled(t *testing.T) {
	c := testcloud.NewAWS()
	f := testcloud.Failure{Status: 503, Code: "RequestLimitExceeded", Message: "Request limit exceeded."}
	c.Fail("CreateRoute", f, f, f)
	r := start(t, Config{Provider: AWS}, c)
	s := r.awaitInPlace(t)
	for _, x := range s.Calls {
		if x.Call == "CreateRoute" && (x.Count != 4 || x.Errors[Throttled] != 3) {
			t.Errorf("%+v", x)
		}
	}
	if n := c.Count("DescribeRouteTables Filter"); n != 4 {
		t.Errorf("looked for the tables %d times", n)
	}
}

func TestAWSQuota(t *testing.T) {
	c := testcloud.NewAWS()
	c.Always("CreateRoute", testcloud.Failure{Status: 400, Code: "RouteLimitExceeded", Message: "The maximum number of routes has been reached."})
	r := start(t, Config{Provider: AWS}, c)
	wantText(t, r.awaitError(t, Quota), "RouteLimitExceeded: The maximum number of routes has been reached: raise the quota 'Routes per route table' (L-93826ACB)")
}

// TestAWSRotatedCredentials has the role's keys replaced before their announced end.
func TestAWSRotatedCredentials(t *testing.T) {
	c := testcloud.NewAWS()
	r := start(t, Config{Provider: AWS}, c)
	r.awaitInPlace(t)
	c.SetKey("AKIDROLE", testcloud.Key{})
	c.SetAWSRole("AKIDNEXT", testcloud.Key{Secret: "next-secret", Token: "next-token"})
	r.await(t, "refusal", func(s Status) bool { return strings.Contains(r.log.String(), "AuthFailure") })
	r.awaitInPlace(t)
	if !r.Status().InPlace {
		t.Error("not in place")
	}
}

func TestAWSCredentialsOfEnvironment(t *testing.T) {
	c := testcloud.NewAWS()
	c.SetKey("AKIDENV", testcloud.Key{Secret: "env-secret", Token: "env-token"})
	c.DeleteItem("iam/")
	r := prepare(t, Config{Provider: AWS}, c)
	r.run(t)
	r.Set(me())
	wantText(t, r.awaitError(t, Credentials), "this instance has no role: attach an IAM role, or set AWS_ACCESS_KEY_ID")
	r.stop()
	t.Setenv("AWS_ACCESS_KEY_ID", "AKIDENV")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "env-secret")
	t.Setenv("AWS_SECURITY_TOKEN", "env-token") // flannel's name
	r.run(t)
	r.awaitInPlace(t)
}
