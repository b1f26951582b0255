package testcloud

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// NewTencent returns a Tencent VPC vpc-1 with an instance whose one interface has the address
// 172.31.0.1, and a first table rtb-first. The CAM role has the key AKIDrole.
func NewTencent() *Cloud {
	c := newCloud(tencentAPI, tencentMetadata, map[string]string{
		"placement/region": "ap-test", "network/interfaces/macs/": "52:54:00:00:00:01/",
		"network/interfaces/macs/52:54:00:00:00:01/vpc-id":             "vpc-1",
		"network/interfaces/macs/52:54:00:00:00:01/primary-local-ipv4": "172.31.0.1",
		"cam/security-credentials/":                                    "node-role",
	})
	c.SetTencentRole("AKIDrole", Key{"role-secret", "role-token"})
	c.AddTable("rtb-first")
	c.AddTable("rtb-second")
	return c
}

// SetTencentRole makes a key that of the instance's role, and valid.
func (c *Cloud) SetTencentRole(id string, k Key) {
	c.SetKey(id, k)
	end := time.Now().Add(6 * time.Hour)
	c.SetItem("cam/security-credentials/node-role", fmt.Sprintf(
		`{"TmpSecretId":%q,"TmpSecretKey":%q,"Token":%q,"ExpiredTime":%d,"Expiration":%q,"Code":"Success"}`,
		id, k.Secret, k.Token, end.Unix(), end.UTC().Format(time.RFC3339)))
}

func tencentMetadata(c *Cloud) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet {
			c.problem("metadata %s", r.Method)
		}
		c.item(w, r, "/latest/meta-data/")
	}
}

type tencentRoute struct {
	ID          uint64 `json:"RouteId,omitempty"`
	Destination string `json:"DestinationCidrBlock,omitempty"`
	GatewayType string `json:",omitempty"`
	GatewayID   string `json:"GatewayId,omitempty"`
	Enabled     *bool  `json:",omitempty"`
}

type tencentRequest struct {
	Filters []struct {
		Name   string
		Values []string
	}
	Offset, Limit string
	RouteTableID  string `json:"RouteTableId"`
	Routes        []tencentRoute
}

// tencentAPI is the VPC API. Errors have status 200.
func tencentAPI(c *Cloud) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		defer c.mu.Unlock()
		body, _ := io.ReadAll(r.Body)
		var in tencentRequest
		if err := json.Unmarshal(body, &in); err != nil || r.Method != http.MethodPost ||
			r.Header.Get("X-TC-Version") != "2017-03-12" || r.Header.Get("X-TC-Region") != "ap-test" {
			c.problem("request %s %q %v", r.Method, body, r.Header)
		}
		action := r.Header.Get("X-TC-Action")
		f, failed := c.record(action, string(body))
		if failed && c.fail(w, r, f) {
			return
		}
		w.Header().Set("Content-Type", "application/json")
		if !failed {
			f = c.tencentSignature(r, body)
		}
		var out any
		if f.Code == "" {
			out, f = c.tencentAct(action, in)
		}
		if f.Code != "" {
			out = map[string]any{"RequestId": "ed93f3cb", "Error": map[string]any{"Code": f.Code, "Message": f.Message}}
		}
		json.NewEncoder(w).Encode(map[string]any{"Response": out})
	}
}

var tc3 = regexp.MustCompile(`^TC3-HMAC-SHA256 Credential=([^/]+)/([0-9-]{10})/vpc/tc3_request, SignedHeaders=([a-z;-]+), Signature=([0-9a-f]{64})$`)

// tencentSignature verifies a signature TC3-HMAC-SHA256.
func (c *Cloud) tencentSignature(r *http.Request, body []byte) Failure {
	m := tc3.FindStringSubmatch(r.Header.Get("Authorization"))
	if m == nil {
		c.problem("Authorization: %s", r.Header.Get("Authorization"))
		return Failure{Code: "AuthFailure.InvalidAuthorization"}
	}
	id, date, signed, signature := m[1], m[2], m[3], m[4]
	key, ok := c.keys[id]
	switch {
	case !ok:
		return Failure{Code: "AuthFailure.SecretIdNotFound", Message: "The SecretId is not found, please ensure that your SecretId is correct."}
	case r.Header.Get("X-TC-Token") != key.Token:
		return Failure{Code: "AuthFailure.TokenFailure", Message: "The provided credentials could not be validated because the token is wrong."}
	}
	at := r.Header.Get("X-TC-Timestamp")
	seconds, _ := strconv.ParseInt(at, 10, 64)
	if t := time.Unix(seconds, 0); time.Since(t).Abs() > 5*time.Minute || t.UTC().Format(time.DateOnly) != date {
		return Failure{Code: "AuthFailure.SignatureExpire", Message: "The provided credentials have expired."}
	}
	canonical := "POST\n/\n\n"
	for name := range strings.SplitSeq(signed, ";") {
		v := r.Header.Get(name)
		if name == "host" {
			v = r.Host
		}
		canonical += name + ":" + strings.ToLower(strings.TrimSpace(v)) + "\n"
	}
	canonical += "\n" + signed + "\n" + sha(body)
	text := "TC3-HMAC-SHA256\n" + at + "\n" + date + "/vpc/tc3_request\n" + sha([]byte(canonical))
	k := mac(mac(mac([]byte("TC3"+key.Secret), date), "vpc"), "tc3_request")
	if !strings.Contains(signed, "content-type;host") || hex.EncodeToString(mac(k, text)) != signature {
		return Failure{Code: "AuthFailure.SignatureFailure", Message: "The provided credentials could not be validated: " + text + " " + id}
	}
	return Failure{}
}

func (c *Cloud) tencentAct(action string, in tencentRequest) (any, Failure) {
	ok := map[string]any{"RequestId": "ed93f3cb"}
	if action == "DescribeRouteTables" {
		return c.tencentDescribe(in), Failure{}
	}
	if _, known := c.tables[in.RouteTableID]; !known || len(in.Routes) != 1 {
		return nil, Failure{Code: "ResourceNotFound", Message: "The route table " + in.RouteTableID + " is not found."}
	}
	r := in.Routes[0]
	switch action {
	case "CreateRoutes":
		dst, err := netip.ParsePrefix(r.Destination)
		if err != nil || r.GatewayType != "NORMAL_CVM" || r.ID != 0 {
			c.problem("CreateRoutes %+v", r)
		}
		if !c.create(in.RouteTableID, Route{Dst: dst, Target: r.GatewayID}) {
			return nil, Failure{Code: "InvalidParameterValue.Duplicate", Message: "The route " + r.Destination + " already exists."}
		}
	case "DeleteRoutes":
		if !c.remove(in.RouteTableID, func(x Route) bool { return x.ID == fmt.Sprint(r.ID) }) {
			return nil, Failure{Code: "ResourceNotFound", Message: "The route is not found."}
		}
	default:
		c.problem("action %s", action)
		return nil, Failure{Code: "InvalidAction", Message: action}
	}
	return ok, Failure{}
}

func (c *Cloud) tencentDescribe(in tencentRequest) any {
	if len(in.Filters) != 1 || len(in.Filters[0].Values) != 1 {
		c.problem("filters %+v", in)
		return nil
	}
	var ids []string
	switch value := in.Filters[0].Values[0]; in.Filters[0].Name {
	case "vpc-id":
		if value == "vpc-1" {
			ids = c.order
		}
	case "route-table-id":
		if slices.Contains(c.order, value) {
			ids = []string{value}
		}
	default:
		c.problem("filter %+v", in)
	}
	total := len(ids)
	offset, err := strconv.Atoi(in.Offset)
	if limit, err2 := strconv.Atoi(in.Limit); err != nil || err2 != nil || limit > 100 {
		c.problem("page %+v", in)
	}
	if c.extra["loop"] != "" {
		offset, total = 0, 1<<30
	}
	ids = ids[min(offset, len(ids)):min(offset+1, len(ids))] // one per page
	set := []any{}
	for _, id := range ids {
		routes := []tencentRoute{}
		for _, r := range c.listed(id) {
			n, _ := strconv.ParseUint(r.ID, 10, 64)
			enabled := !r.BlackHole
			routes = append(routes, tencentRoute{n, r.Dst.String(), "NORMAL_CVM", r.Target, &enabled})
		}
		set = append(set, map[string]any{"RouteTableId": id, "VpcId": "vpc-1", "Main": id == c.order[0], "RouteSet": routes})
	}
	return map[string]any{"RequestId": "1", "TotalCount": total, "RouteTableSet": set}
}
