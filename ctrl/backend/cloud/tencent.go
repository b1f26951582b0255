package cloud

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// tencent is the VPC API, version 2017-03-12, with signatures TC3-HMAC-SHA256, and the CVM metadata
// service.
type tencent struct {
	client   *client
	metadata *metadataService
	keys     keySource
	endpoint string
	region   string
	vpc      string
	hop      string // address of this node, which is the next hop
}

const (
	tencentAPI      = "https://vpc.tencentcloudapi.com"
	tencentMetadata = "http://metadata.tencentyun.com"
)

func newTencent(c Config, client *client, e endpoints) (provider, error) {
	t := &tencent{client: client, endpoint: cmp.Or(e.api, tencentAPI), metadata: &metadataService{
		items: cmp.Or(e.metadata, tencentMetadata) + "/latest/meta-data/", calls: client.calls,
		http: metadataClient(), instance: "a CVM instance",
	}}
	t.keys = roleOrConfigured(c, t.metadata, "cam/security-credentials/",
		keyNames{"TmpSecretId", "TmpSecretKey", "Token"})
	return t, nil
}

// locate reads the metadata and, as flannel, takes the first route table of the VPC.
func (t *tencent) locate(ctx context.Context, n Node) (place, error) {
	t.keys.forget()
	var macs string
	err := t.metadata.all(ctx, map[string]*string{
		"placement/region": &t.region, "network/interfaces/macs/": &macs,
	})
	if err != nil {
		return place{}, err
	}
	mac, err := interfaceOf(lines(macs), n.Addrs, func(mac string) (string, error) {
		return t.metadata.get(ctx, "network/interfaces/macs/"+mac+"/primary-local-ipv4")
	})
	if err != nil {
		return place{}, err
	}
	err = t.metadata.all(ctx, map[string]*string{"network/interfaces/macs/" + mac + "/vpc-id": &t.vpc})
	if err != nil {
		return place{}, err
	}
	t.hop = ""
	for _, a := range n.Public {
		if a.Is4() {
			t.hop = a.String()
		}
	}
	tables, err := t.describe(ctx, "vpc-id", t.vpc)
	if err != nil {
		return place{}, err
	}
	if len(tables) == 0 {
		return place{}, &Error{Call: "DescribeRouteTables", Message: "VPC " + t.vpc + " has no route table"}
	}
	return place{tables: []string{tables[0].ID}}, nil
}

// tencentTable is a route table in an answer.
type tencentTable struct {
	ID     string         `json:"RouteTableId"`
	Routes []tencentRoute `json:"RouteSet"`
}

// tencentRoute is a route in requests and answers.
type tencentRoute struct {
	ID          uint64 `json:"RouteId,omitempty"`
	Destination string `json:"DestinationCidrBlock,omitempty"`
	GatewayType string `json:",omitempty"`
	GatewayID   string `json:"GatewayId,omitempty"`
	Enabled     *bool  `json:",omitempty"`
}

// tencentHop is the type of a next hop that is an instance, by its address.
const tencentHop = "NORMAL_CVM"

// describe lists the route tables with a property, all pages.
func (t *tencent) describe(ctx context.Context, property, value string) ([]tencentTable, error) {
	const action, limit = "DescribeRouteTables", "100" // the largest
	type filter struct {
		Name   string
		Values []string
	}
	var tables []tencentTable
	err := pages(action, func(offset string) (string, error) {
		var page struct {
			TotalCount int
			Tables     []tencentTable `json:"RouteTableSet"`
		}
		err := t.call(ctx, action, map[string]any{
			"Filters": []filter{{property, []string{value}}},
			"Offset":  cmp.Or(offset, "0"), "Limit": limit,
		}, &page)
		tables = append(tables, page.Tables...)
		if err != nil || len(tables) >= page.TotalCount || len(page.Tables) == 0 {
			return "", err
		}
		return strconv.Itoa(len(tables)), nil
	})
	return tables, err
}

// routes lists all routes of a table, which come in one answer.
func (t *tencent) routes(ctx context.Context, table string, _ []netip.Prefix) ([]route, error) {
	tables, err := t.describe(ctx, "route-table-id", table)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(tables, func(x tencentTable) bool { return x.ID == table })
	if i < 0 {
		return nil, notListed("DescribeRouteTables")
	}
	var list []route
	for _, r := range tables[i].Routes {
		dst, err := netip.ParsePrefix(r.Destination)
		if err != nil {
			continue
		}
		list = append(list, route{
			dst: dst, id: strconv.FormatUint(r.ID, 10), target: r.GatewayType + " " + r.GatewayID,
			local:  r.GatewayType == tencentHop && r.GatewayID == t.hop,
			usable: r.Enabled == nil || *r.Enabled,
		})
	}
	return list, nil
}

func (t *tencent) create(ctx context.Context, table string, dst netip.Prefix) error {
	return t.change(ctx, "CreateRoutes", table,
		tencentRoute{Destination: dst.String(), GatewayType: tencentHop, GatewayID: t.hop})
}

func (t *tencent) remove(ctx context.Context, table string, r route) error {
	id, err := strconv.ParseUint(r.id, 10, 64)
	if err != nil {
		return fmt.Errorf("route ID %q: %w", r.id, err)
	}
	return unless("ResourceNotFound", t.change(ctx, "DeleteRoutes", table, tencentRoute{ID: id}))
}

func (t *tencent) change(ctx context.Context, action, table string, r tencentRoute) error {
	return t.call(ctx, action, map[string]any{"RouteTableId": table, "Routes": []tencentRoute{r}}, &struct{}{})
}

// call signs and sends a request and decodes its answer.
func (t *tencent) call(ctx context.Context, action string, body, into any) (err error) {
	defer func() { t.client.calls.add(action, err) }()
	keys, err := t.keys.get(ctx)
	if err != nil {
		return err
	}
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	answer, err := t.client.send(ctx, request{call: action, method: http.MethodPost, keys: keys,
		url: t.endpoint + "/", body: text, header: map[string]string{
			"Content-Type": "application/json; charset=utf-8", "X-TC-Action": action,
			"X-TC-Version": "2017-03-12", "X-TC-Region": t.region,
		},
		sign: func(r *http.Request) error { signTencent(r, text, keys, time.Now()); return nil },
	})
	if err != nil {
		return err
	}
	return answer.decodeTencent(action, into)
}

// decodeTencent decodes an answer, or its error, which has status 200, too.
func (a answer) decodeTencent(action string, into any) error {
	var envelope struct {
		Response *json.RawMessage
	}
	if json.Unmarshal(a.body, &envelope) != nil || envelope.Response == nil {
		return a.unreadable(action, "JSON")
	}
	var common struct {
		RequestID string
		Error     struct{ Code, Message string }
	}
	if json.Unmarshal(*envelope.Response, &common) != nil || common.RequestID == "" {
		return a.unreadable(action, "JSON")
	}
	if code := common.Error.Code; code != "" {
		return a.failure(tencentError(action, code, common.Error.Message))
	}
	if json.Unmarshal(*envelope.Response, into) != nil {
		return a.unreadable(action, "JSON")
	}
	return nil
}

// signTencent adds the time and the signature of a request.
func signTencent(r *http.Request, body []byte, k keyPair, now time.Time) {
	timestamp, date := strconv.FormatInt(now.Unix(), 10), now.UTC().Format(time.DateOnly)
	r.Header.Set("X-TC-Timestamp", timestamp)
	if k.token != "" {
		r.Header.Set("X-TC-Token", k.token)
	}
	const signed = "content-type;host"
	request := strings.Join([]string{r.Method, "/", "",
		"content-type:" + r.Header.Get("Content-Type"), "host:" + r.URL.Host, "",
		signed, hexHash(body)}, "\n")
	scope := date + "/vpc/tc3_request"
	text := strings.Join([]string{"TC3-HMAC-SHA256", timestamp, scope, hexHash([]byte(request))}, "\n")
	key := []byte("TC3" + k.secret)
	for _, part := range []string{date, "vpc", "tc3_request"} {
		key = keyedHash(key, part)
	}
	r.Header.Set("Authorization", fmt.Sprintf("TC3-HMAC-SHA256 Credential=%s/%s, SignedHeaders=%s, Signature=%s",
		k.id, scope, signed, hex.EncodeToString(keyedHash(key, text))))
}

func hexHash(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

func keyedHash(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

// tencentError classifies an error code of Tencent.
func tencentError(action, code, message string) *Error {
	e := &Error{Call: action, Code: code, Message: message, Kind: firstCode(code, []codeKind{
		{"RequestLimitExceeded", Throttled}, {"LimitExceeded.Frequency", Throttled},
		{"UnauthorizedOperation", Denied}, {"AuthFailure.UnauthorizedOperation", Denied},
		{"AuthFailure", Credentials},
		{"LimitExceeded", Quota}, {"InternalError", Unavailable}, {"ResourceUnavailable", Unavailable},
		{"ResourceInUse", Pending}, {"InvalidParameterValue.Duplicate", Pending},
		{"InternalServerError", Unavailable},
	})}
	switch {
	case code == "AuthFailure.SignatureFailure":
		e.Message = "the signature does not match: is AccessKeySecret right?"
	case e.Kind == Denied:
		e.Hint = missing("vpc:" + action)
	case e.Kind == Quota:
		e.Hint = "raise the quota of routes per route table"
	}
	return e
}
