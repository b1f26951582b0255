package cloud

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// alibaba is the VPC API, version 2016-04-28, in the RPC style, and the ECS metadata service.
type alibaba struct {
	client   *client
	metadata *metadataService
	keys     keySource
	endpoint string // of the API; empty: that of the region
	self     aliInstance
}

// aliInstance is this instance.
type aliInstance struct {
	id, region, vpc, vswitch string
	hopType, hop             string // next hop of routes to this instance
}

const aliMetadata = "http://100.100.100.200"

func newAlibaba(c Config, client *client, e endpoints) (provider, error) {
	host := cmp.Or(e.metadata, aliMetadata)
	a := &alibaba{client: client, endpoint: e.api, metadata: &metadataService{
		items: host + "/latest/meta-data/", tokens: host + "/latest/api/token", calls: client.calls,
		http: metadataClient(), instance: "an ECS instance", tokenHeader: "X-aliyun-ecs-metadata-token",
	}}
	a.keys = roleOrConfigured(c, a.metadata, "ram/security-credentials/",
		keyNames{"AccessKeyId", "AccessKeySecret", "SecurityToken"})
	return a, nil
}

// locate reads the metadata and finds the route table of the interface's switch, or the VPC's
// system table.
func (a *alibaba) locate(ctx context.Context, n Node) (place, error) {
	a.keys.forget()
	if err := a.findSelf(ctx, n); err != nil {
		return place{}, err
	}
	tables, err := a.tables(ctx)
	if err != nil {
		return place{}, err
	}
	own := slices.IndexFunc(tables, func(t aliTable) bool {
		return slices.Contains(t.VSwitches.IDs, a.self.vswitch)
	})
	if own < 0 {
		own = slices.IndexFunc(tables, func(t aliTable) bool { return t.Type == "System" })
	}
	if own < 0 {
		return place{}, &Error{Call: "DescribeRouteTableList", Message: fmt.Sprintf(
			"no route table of switch %s or VPC %s", a.self.vswitch, a.self.vpc)}
	}
	return place{tables: []string{tables[own].ID}}, nil
}

// findSelf reads the metadata of this instance and of the interface with the node's address.
func (a *alibaba) findSelf(ctx context.Context, n Node) error {
	var self aliInstance
	var primary, macs string
	err := a.metadata.all(ctx, map[string]*string{
		"instance-id": &self.id, "region-id": &self.region, "mac": &primary,
		"network/interfaces/macs/": &macs,
	})
	if err != nil {
		return err
	}
	if err := checkName("region", self.region); err != nil {
		return err
	}
	mac, err := interfaceOf(lines(macs), n.Addrs, func(mac string) (string, error) {
		return a.metadata.get(ctx, "network/interfaces/macs/"+mac+"/private-ipv4s")
	})
	if err != nil {
		return err
	}
	prefix := "network/interfaces/macs/" + mac + "/"
	var eni string
	err = a.metadata.all(ctx, map[string]*string{
		prefix + "vpc-id": &self.vpc, prefix + "vswitch-id": &self.vswitch,
		prefix + "network-interface-id": &eni,
	})
	if err != nil {
		return err
	}
	self.hopType, self.hop = "Instance", self.id
	if mac != primary {
		self.hopType, self.hop = "NetworkInterface", eni
	}
	a.self = self
	return nil
}

// aliTable is a route table in an answer.
type aliTable struct {
	ID        string `json:"RouteTableId"`
	Type      string `json:"RouteTableType"` // "System" or "Custom"
	VSwitches struct {
		IDs []string `json:"VSwitchId"`
	} `json:"VSwitchIds"`
}

// tables lists the route tables of the VPC, all pages.
func (a *alibaba) tables(ctx context.Context) ([]aliTable, error) {
	const action, pageSize = "DescribeRouteTableList", "50" // the largest
	var tables []aliTable
	number := 0
	err := pages(action, func(string) (string, error) {
		number++
		var page struct {
			TotalCount int
			List       struct {
				Tables []aliTable `json:"RouterTableListType"`
			} `json:"RouterTableList"`
		}
		err := a.call(ctx, action, url.Values{
			"VpcId": {a.self.vpc}, "PageSize": {pageSize}, "PageNumber": {strconv.Itoa(number)},
		}, &page)
		tables = append(tables, page.List.Tables...)
		if err != nil || len(tables) >= page.TotalCount || len(page.List.Tables) == 0 {
			return "", err
		}
		return strconv.Itoa(number + 1), nil
	})
	return tables, err
}

// aliRoute is a route in an answer.
type aliRoute struct {
	ID          string `json:"RouteEntryId"`
	Destination string `json:"DestinationCidrBlock"`
	Status      string // "Pending", "Available" or "Modifying"
	NextHops    struct {
		List []struct {
			Type string `json:"NextHopType"`
			ID   string `json:"NextHopId"`
		} `json:"NextHop"`
	}
}

func (a *alibaba) routes(ctx context.Context, table string, dsts []netip.Prefix) ([]route, error) {
	v := url.Values{"RouteTableId": {table}, "RouteEntryType": {"Custom"}, "MaxResult": {"100"}}
	if len(dsts) == 0 {
		return a.list(ctx, v)
	}
	var all []route
	for _, dst := range dsts {
		v.Set("DestinationCidrBlock", dst.String())
		list, err := a.list(ctx, v)
		if err != nil {
			return nil, err
		}
		all = append(all, list...)
	}
	return all, nil
}

// list lists routes, all pages.
func (a *alibaba) list(ctx context.Context, v url.Values) ([]route, error) {
	const action = "DescribeRouteEntryList"
	var list []route
	err := pages(action, func(token string) (string, error) {
		v.Del("NextToken")
		if token != "" {
			v.Set("NextToken", token)
		}
		var page struct {
			NextToken string
			Entries   struct {
				List []aliRoute `json:"RouteEntry"`
			} `json:"RouteEntrys"`
		}
		err := a.call(ctx, action, v, &page)
		for _, r := range page.Entries.List {
			dst, parseErr := netip.ParsePrefix(r.Destination)
			if parseErr != nil || len(r.NextHops.List) == 0 {
				continue
			}
			hop := r.NextHops.List[0].ID
			local := len(r.NextHops.List) == 1 && hop == a.self.hop
			if local && r.Status != "Available" {
				return "", pending("the route to %v is %s", dst, r.Status)
			}
			list = append(list, route{dst: dst, id: r.ID, target: hop, local: local, usable: true})
		}
		return page.NextToken, err
	})
	return list, err
}

func (a *alibaba) create(ctx context.Context, table string, dst netip.Prefix) error {
	return a.call(ctx, "CreateRouteEntry", url.Values{
		"RouteTableId": {table}, "DestinationCidrBlock": {dst.String()},
		"NextHopType": {a.self.hopType}, "NextHopId": {a.self.hop},
	}, &struct{}{})
}

func (a *alibaba) remove(ctx context.Context, table string, r route) error {
	return unless("InvalidRouteEntry", a.call(ctx, "DeleteRouteEntry",
		url.Values{"RouteTableId": {table}, "RouteEntryId": {r.id}}, &struct{}{}))
}

// call signs and sends a request and decodes its answer.
func (a *alibaba) call(ctx context.Context, action string, v url.Values, into any) (err error) {
	defer func() { a.client.calls.add(action, err) }()
	keys, err := a.keys.get(ctx)
	if err != nil {
		return err
	}
	v = maps.Clone(v)
	v.Set("RegionId", a.self.region)
	signAlibaba(v, action, keys, time.Now())
	answer, err := a.client.send(ctx, request{call: action, method: http.MethodPost, keys: keys,
		url:    cmp.Or(a.endpoint, "https://vpc."+a.self.region+".aliyuncs.com") + "/",
		header: map[string]string{"Content-Type": "application/x-www-form-urlencoded"},
		body:   []byte(v.Encode())})
	if err != nil {
		return err
	}
	return answer.decodeAlibaba(action, into)
}

// decodeAlibaba decodes an answer, or its error.
func (a answer) decodeAlibaba(action string, into any) error {
	var common struct{ RequestID, Code, Message string }
	switch {
	case json.Unmarshal(a.body, &common) != nil, a.ok() && common.RequestID == "",
		!a.ok() && common.Code == "", a.ok() && json.Unmarshal(a.body, into) != nil:
		return a.unreadable(action, "JSON")
	case a.ok():
		return nil
	}
	return a.failure(aliError(action, common.Code, common.Message))
}

// signAlibaba adds the common parameters and the signature, version 1.0, of a POST request.
func signAlibaba(v url.Values, action string, k keyPair, now time.Time) {
	v.Set("Action", action)
	v.Set("Version", "2016-04-28")
	v.Set("Format", "JSON")
	v.Set("SignatureMethod", "HMAC-SHA1")
	v.Set("SignatureVersion", "1.0")
	v.Set("SignatureNonce", rand.Text())
	v.Set("Timestamp", now.UTC().Format("2006-01-02T15:04:05Z"))
	v.Set("AccessKeyId", k.id)
	if k.token != "" {
		v.Set("SecurityToken", k.token)
	}
	mac := hmac.New(sha1.New, []byte(k.secret+"&"))
	mac.Write([]byte("POST&%2F&" + percent(strings.ReplaceAll(v.Encode(), "+", "%20"))))
	v.Set("Signature", base64.StdEncoding.EncodeToString(mac.Sum(nil)))
}

// percent encodes all but the unreserved characters of RFC 3986.
func percent(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }

// aliError classifies an error code of Alibaba.
func aliError(action, code, message string) *Error {
	e := &Error{Call: action, Code: code, Message: message, Kind: firstCode(code, []codeKind{
		{"Throttling", Throttled}, {"ServiceUnavailable", Unavailable}, {"InternalError", Unavailable},
		{"Forbidden.RAM", Denied}, {"NoPermission", Denied}, {"Forbidden.NotAuthorized", Denied},
		{"QuotaExceeded", Quota}, {"VpcRouterEntryNumExceed", Quota},
		{"InvalidAccessKeyId", Credentials}, {"InvalidSecurityToken", Credentials},
		{"SecurityTokenExpired", Credentials}, {"SignatureDoesNotMatch", Credentials},
		{"IncompleteSignature", Credentials}, {"InvalidTimeStamp", Credentials},
		{"SignatureNonceUsed", Throttled},
		{"InvalidCidrBlock.Duplicate", Pending}, {"RouterEntryConflict.Duplicated", Pending},
		{"IncorrectRouteEntryStatus", Pending}, {"IncorrectVpcStatus", Pending},
		{"TaskConflict", Pending}, {"OperationConflict", Pending}, {"LastTokenProcessing", Pending},
		{"OperationFailed.LastTokenProcessing", Pending}, {"IncorrectStatus", Pending},
	})}
	switch {
	case strings.HasPrefix(code, "SignatureDoesNotMatch"), code == "IncompleteSignature":
		e.Message = "the signature does not match: is AccessKeySecret right?"
	case e.Kind == Denied:
		e.Hint = missing("vpc:" + action)
	case e.Kind == Quota:
		e.Hint = "raise the quota of custom route entries per route table (vpc_quota_route_entrys_num)"
	}
	return e
}
