package testcloud

import (
	"crypto/hmac"
	"crypto/sha1"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// NewAlibaba returns an Alibaba VPC vpc-1 with an instance i-1, whose one interface has the address
// 172.31.0.1 in vsw-1, and a system table vtb-system. The RAM role has the key STS.role.
func NewAlibaba() *Cloud {
	const first = "network/interfaces/macs/00:16:3e:00:00:01/"
	c := newCloud(aliAPI, aliMetadata, map[string]string{
		"instance-id": "i-1", "region-id": "cn-test", "mac": "00:16:3e:00:00:01",
		"network/interfaces/macs/": "00:16:3e:00:00:01/",
		first + "vpc-id":           "vpc-1", first + "vswitch-id": "vsw-1",
		first + "network-interface-id": "eni-1", first + "private-ipv4s": `["172.31.0.1"]`,
		"ram/security-credentials/": "node-role",
	})
	c.SetAlibabaRole("STS.role", Key{"role-secret", "role-token"})
	c.AddTable("vtb-custom")
	c.AddTable("vtb-system")
	return c
}

// SetAlibabaRole makes a key that of the instance's role, and valid.
func (c *Cloud) SetAlibabaRole(id string, k Key) {
	c.SetKey(id, k)
	c.SetItem("ram/security-credentials/node-role", fmt.Sprintf(
		`{"Code":"Success","AccessKeyId":%q,"AccessKeySecret":%q,"SecurityToken":%q,"Expiration":%q}`,
		id, k.Secret, k.Token, time.Now().Add(6*time.Hour).UTC().Format(time.RFC3339)))
}

// aliMetadata is the metadata service. With the property hardened, it demands a token, and without
// it knows none.
func aliMetadata(c *Cloud) http.HandlerFunc {
	const header, token = "X-aliyun-ecs-metadata-token", "ecs-token"
	return func(w http.ResponseWriter, r *http.Request) {
		hardened := c.extra["hardened"] != ""
		switch {
		case r.URL.Path == "/latest/api/token" && hardened && r.Method == http.MethodPut &&
			r.Header.Get(header+"-ttl-seconds") != "":
			io.WriteString(w, token)
		case r.URL.Path == "/latest/api/token":
			w.WriteHeader(http.StatusNotFound)
		case hardened && r.Header.Get(header) != token:
			w.WriteHeader(http.StatusForbidden)
		default:
			c.item(w, r, "/latest/meta-data/")
		}
	}
}

// aliAPI is the VPC API in the RPC style.
func aliAPI(c *Cloud) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		defer c.mu.Unlock()
		body, _ := io.ReadAll(r.Body)
		v, err := url.ParseQuery(string(body))
		if err != nil || r.Method != http.MethodPost || r.URL.RawQuery != "" || v.Get("Version") != "2016-04-28" ||
			v.Get("Format") != "JSON" || v.Get("RegionId") != "cn-test" {
			c.problem("request %s %q", r.Method, body)
		}
		action := v.Get("Action")
		f, failed := c.record(action, aliParameters(v))
		if failed && c.fail(w, r, f) {
			return
		}
		w.Header().Set("Content-Type", "application/json;charset=utf-8")
		if !failed {
			f = c.aliSignature(v)
		}
		if f.Code == "" {
			f = c.aliAct(w, action, v)
		}
		if f.Code != "" {
			w.WriteHeader(f.Status)
			json.NewEncoder(w).Encode(map[string]any{"RequestId": "0ED8D006", "HostId": r.Host,
				"Code": f.Code, "Message": f.Message})
		}
	}
}

// aliParameters returns the parameters that differ between requests.
func aliParameters(v url.Values) string {
	p := url.Values{}
	for k, list := range v {
		if !slices.Contains([]string{"Action", "Version", "Format", "SignatureMethod", "SignatureVersion",
			"SignatureNonce", "Timestamp", "AccessKeyId", "SecurityToken", "Signature", "RegionId"}, k) {
			p[k] = list
		}
	}
	text, _ := url.QueryUnescape(p.Encode())
	return text
}

// aliSignature verifies a signature of version 1.0.
func (c *Cloud) aliSignature(v url.Values) Failure {
	key, ok := c.keys[v.Get("AccessKeyId")]
	if !ok {
		return Failure{Status: 404, Code: "InvalidAccessKeyId.NotFound", Message: "Specified access key is not found."}
	}
	if v.Get("SecurityToken") != key.Token {
		return Failure{Status: 400, Code: "InvalidSecurityToken.Expired", Message: "Specified SecurityToken is expired."}
	}
	if at, err := time.Parse("2006-01-02T15:04:05Z", v.Get("Timestamp")); err != nil || time.Since(at).Abs() > 15*time.Minute {
		return Failure{Status: 400, Code: "InvalidTimeStamp.Expired", Message: "Specified time stamp or date value is expired."}
	}
	nonce := v.Get("SignatureNonce")
	if c.extra["nonce "+nonce] != "" || nonce == "" || v.Get("SignatureMethod") != "HMAC-SHA1" {
		c.problem("nonce %q", nonce)
	}
	c.extra["nonce "+nonce] = "used"
	var names []string
	for k := range v {
		if k != "Signature" {
			names = append(names, k)
		}
	}
	slices.Sort(names)
	var pairs []string
	for _, k := range names {
		pairs = append(pairs, unreserved(k)+"="+unreserved(v.Get(k)))
	}
	text := "POST&" + unreserved("/") + "&" + unreserved(strings.Join(pairs, "&"))
	h := hmac.New(sha1.New, []byte(key.Secret+"&"))
	h.Write([]byte(text))
	if base64.StdEncoding.EncodeToString(h.Sum(nil)) != v.Get("Signature") {
		// As the real one, it repeats what was signed.
		return Failure{Status: 400, Code: "SignatureDoesNotMatch",
			Message: "Specified signature is not matched with our calculation. server string to sign is:" + text}
	}
	return Failure{}
}

// unreserved encodes all but the unreserved characters of RFC 3986, one by one.
func unreserved(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-_.~", c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

func (c *Cloud) aliAct(w io.Writer, action string, v url.Values) Failure {
	table := v.Get("RouteTableId")
	if table != "" && !slices.Contains(c.order, table) {
		return Failure{Status: 404, Code: "InvalidRouteTableId.NotFound", Message: "Specified route table does not exist."}
	}
	dst, _ := netip.ParsePrefix(v.Get("DestinationCidrBlock"))
	switch action {
	case "DescribeRouteTableList":
		c.aliTables(w, v)
	case "DescribeRouteEntryList":
		c.aliRoutes(w, v)
	case "CreateRouteEntry":
		if v.Get("NextHopType") == "Instance" != (v.Get("NextHopId")[:2] == "i-") {
			c.problem("next hop %v", v)
		}
		if !c.create(table, Route{Dst: dst, Target: v.Get("NextHopId")}) {
			return Failure{Status: 400, Code: "InvalidCidrBlock.Duplicate", Message: "Specified CIDR block is already exists."}
		}
		io.WriteString(w, `{"RequestId":"62172DD5"}`)
	case "DeleteRouteEntry":
		if !c.remove(table, func(r Route) bool { return r.ID == v.Get("RouteEntryId") }) {
			return Failure{Status: 404, Code: "InvalidRouteEntry.NotFound", Message: "Specified route entry is not found."}
		}
		io.WriteString(w, `{"RequestId":"62172DD5"}`)
	default:
		c.problem("action %s", action)
		return Failure{Status: 404, Code: "InvalidAction.NotFound", Message: action}
	}
	return Failure{}
}

// aliTables lists tables by pages that are numbered from 1.
func (c *Cloud) aliTables(w io.Writer, v url.Values) {
	number, _ := strconv.Atoi(v.Get("PageNumber"))
	if v.Get("VpcId") != "vpc-1" || number < 1 {
		c.problem("DescribeRouteTableList %v", v)
	}
	var list []any
	if number <= len(c.order) { // one table per page
		id := c.order[number-1]
		switches := []string{}
		for s, t := range c.assoc {
			if t == id {
				switches = append(switches, s)
			}
		}
		kind := "Custom"
		if strings.HasSuffix(id, "system") {
			kind = "System"
		}
		list = append(list, map[string]any{"RouteTableId": id, "RouteTableType": kind, "VpcId": "vpc-1",
			"VSwitchIds": map[string]any{"VSwitchId": switches}})
	}
	json.NewEncoder(w).Encode(map[string]any{"RequestId": "1", "Code": "200", "Success": true, "PageNumber": number,
		"TotalCount": len(c.order), "RouterTableList": map[string]any{"RouterTableListType": list}})
}

func (c *Cloud) aliRoutes(w io.Writer, v url.Values) {
	all := c.listed(v.Get("RouteTableId"))
	if dst := v.Get("DestinationCidrBlock"); dst != "" {
		all = slices.DeleteFunc(all, func(r Route) bool { return r.Dst.String() != dst })
	}
	routes, next := page(c, all, v.Get("NextToken"))
	list := []any{}
	for _, r := range routes {
		status := "Available"
		if c.extra["status"] != "" {
			status = c.extra["status"]
		}
		list = append(list, map[string]any{"RouteEntryId": r.ID, "DestinationCidrBlock": r.Dst.String(), "Status": status,
			"Type": "Custom", "NextHops": map[string]any{"NextHop": []any{
				map[string]any{"NextHopId": r.Target, "NextHopType": "Instance", "Enabled": 1}}}})
	}
	json.NewEncoder(w).Encode(map[string]any{"RequestId": "1", "NextToken": next,
		"RouteEntrys": map[string]any{"RouteEntry": list}})
}
