package cloud

import (
	"cmp"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// amazon is the EC2 Query API, version 2016-11-15, and the instance metadata service, version 2.
type amazon struct {
	client   *client
	metadata *metadataService
	keys     keySource
	signer   *v4.Signer

	configured []string // route tables
	endpoint   string   // of the API; empty: that of the region
	self       awsInstance
}

// awsInstance is this instance.
type awsInstance struct {
	id, region, domain string
	eni, subnet, vpc   string // of the interface to the other nodes
	interfaces         int
}

func newAWS(c Config, client *client, e endpoints) (provider, error) {
	host := cmp.Or(e.metadata, os.Getenv("AWS_EC2_METADATA_SERVICE_ENDPOINT"), "http://169.254.169.254")
	host = strings.TrimSuffix(host, "/")
	a := &amazon{
		client: client, signer: v4.NewSigner(), configured: c.RouteTables,
		endpoint: cmp.Or(e.api, os.Getenv("AWS_ENDPOINT_URL_EC2")),
		metadata: &metadataService{
			items: host + "/latest/meta-data/", tokens: host + "/latest/api/token",
			tokenHeader: "X-aws-ec2-metadata-token", http: metadataClient(), calls: client.calls,
			instance: "an EC2 instance", hint: ", and is the hop limit of its metadata enough",
		},
	}
	a.keys.fetch = a.fetchKeys
	return a, nil
}

// locate reads the metadata, turns the check of source and destination off and finds the tables.
func (a *amazon) locate(ctx context.Context, n Node) (place, error) {
	a.keys.forget()
	a.signer = v4.NewSigner() // which keeps what it derives from a secret by the key's ID only
	a.keys.configured = environmentKeys()
	if err := a.findSelf(ctx, n); err != nil {
		return place{}, err
	}
	tables, err := a.tables(ctx)
	if err != nil {
		return place{}, err
	}
	p := place{tables: tables}
	if err := a.stopChecking(ctx); err != nil {
		p.notes = append(p.notes, "the check of source and destination cannot be turned off: "+
			err.Error()+"; unless it is off already, AWS drops packets of pods")
	}
	return p, nil
}

// findSelf reads the metadata of this instance and of the interface with the node's address.
func (a *amazon) findSelf(ctx context.Context, n Node) error {
	self := awsInstance{region: os.Getenv("AWS_REGION")}
	var macs string
	items := map[string]*string{"instance-id": &self.id, "network/interfaces/macs/": &macs}
	if self.region == "" {
		items["placement/region"] = &self.region
	}
	if err := a.metadata.all(ctx, items); err != nil {
		return err
	}
	self.interfaces = len(lines(macs))
	self.domain = "amazonaws.com"
	if domain, err := a.metadata.get(ctx, "services/domain"); err == nil && domain != "" {
		self.domain = domain
	}
	if err := errors.Join(checkName("region", self.region), checkName("domain", self.domain)); err != nil {
		return err
	}
	mac, err := interfaceOf(lines(macs), n.Addrs, func(mac string) (string, error) {
		return a.metadata.get(ctx, "network/interfaces/macs/"+mac+"/local-ipv4s")
	})
	if err != nil {
		return err
	}
	prefix := "network/interfaces/macs/" + mac + "/"
	err = a.metadata.all(ctx, map[string]*string{prefix + "interface-id": &self.eni,
		prefix + "subnet-id": &self.subnet, prefix + "vpc-id": &self.vpc})
	if err == nil {
		a.self = self
	}
	return err
}

// tables returns the configured route tables, or that of the interface's subnet, or the VPC's main
// one.
func (a *amazon) tables(ctx context.Context) ([]string, error) {
	if len(a.configured) > 0 {
		return a.configured, nil
	}
	tables, err := a.describe(ctx, filter("association.subnet-id", a.self.subnet))
	if err != nil {
		return nil, err
	}
	if len(tables) == 0 {
		tables, err = a.describe(ctx, filter("vpc-id", a.self.vpc, "association.main", "true"))
		if err != nil {
			return nil, err
		}
	}
	if len(tables) == 0 {
		return nil, &Error{Call: "DescribeRouteTables", Message: fmt.Sprintf(
			"no route table of subnet %s or VPC %s", a.self.subnet, a.self.vpc),
			Hint: "set RouteTableID"}
	}
	return []string{tables[0].ID}, nil
}

// filter returns the parameters of filters, by pairs of name and value.
func filter(pairs ...string) url.Values {
	v := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		v.Set(fmt.Sprintf("Filter.%d.Name", i/2+1), pairs[i])
		v.Set(fmt.Sprintf("Filter.%d.Value.1", i/2+1), pairs[i+1])
	}
	return v
}

// awsTable is a route table in an answer.
type awsTable struct {
	ID     string     `xml:"routeTableId"`
	Routes []awsRoute `xml:"routeSet>item"`
}

// awsRoute is a route in an answer.
type awsRoute struct {
	Destination  string `xml:"destinationCidrBlock"`
	Destination6 string `xml:"destinationIpv6CidrBlock"`
	State        string `xml:"state"`
	Interface    string `xml:"networkInterfaceId"`
	Instance     string `xml:"instanceId"`
	Gateway      string `xml:"gatewayId"`
}

// describe lists route tables, all pages.
func (a *amazon) describe(ctx context.Context, v url.Values) ([]awsTable, error) {
	const action = "DescribeRouteTables"
	var tables []awsTable
	err := pages(action, func(token string) (string, error) {
		if token != "" {
			v.Set("NextToken", token)
		}
		var page struct {
			XMLName xml.Name   `xml:"DescribeRouteTablesResponse"`
			Tables  []awsTable `xml:"routeTableSet>item"`
			Next    string     `xml:"nextToken"`
		}
		err := a.call(ctx, action, v, &page)
		tables = append(tables, page.Tables...)
		return page.Next, err
	})
	return tables, err
}

// routes lists all routes of a table, which come in one answer.
func (a *amazon) routes(ctx context.Context, table string, _ []netip.Prefix) ([]route, error) {
	tables, err := a.describe(ctx, url.Values{"RouteTableId.1": {table}})
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(tables, func(t awsTable) bool { return t.ID == table })
	if i < 0 {
		return nil, notListed("DescribeRouteTables")
	}
	var list []route
	for _, r := range tables[i].Routes {
		// Routes of prefix lists have neither.
		dst, err := netip.ParsePrefix(cmp.Or(r.Destination, r.Destination6))
		if err != nil {
			continue
		}
		list = append(list, route{
			dst: dst, target: cmp.Or(r.Interface, r.Instance, r.Gateway, r.State),
			local: r.Interface == a.self.eni, usable: r.State == "active",
		})
	}
	return list, nil
}

func (a *amazon) create(ctx context.Context, table string, dst netip.Prefix) error {
	return a.point(ctx, "CreateRoute", table, dst)
}

func (a *amazon) replace(ctx context.Context, table string, dst netip.Prefix) error {
	return a.point(ctx, "ReplaceRoute", table, dst)
}

// point makes a route lead to the interface of this instance.
func (a *amazon) point(ctx context.Context, action, table string, dst netip.Prefix) error {
	v := awsDestination(table, dst)
	v.Set("NetworkInterfaceId", a.self.eni)
	return a.call(ctx, action, v, nil)
}

func (a *amazon) remove(ctx context.Context, table string, r route) error {
	return unless("InvalidRoute.NotFound", a.call(ctx, "DeleteRoute", awsDestination(table, r.dst), nil))
}

func awsDestination(table string, dst netip.Prefix) url.Values {
	key := "DestinationCidrBlock"
	if dst.Addr().Is6() {
		key = "DestinationIpv6CidrBlock"
	}
	return url.Values{"RouteTableId": {table}, key: {dst.String()}}
}

// stopChecking turns the check of source and destination off. For an instance with one interface it
// uses the call of flannel, for whose permission a policy may have been written.
func (a *amazon) stopChecking(ctx context.Context) error {
	if a.self.interfaces == 1 {
		return a.call(ctx, "ModifyInstanceAttribute",
			url.Values{"InstanceId": {a.self.id}, "SourceDestCheck.Value": {"false"}}, nil)
	}
	return a.call(ctx, "ModifyNetworkInterfaceAttribute",
		url.Values{"NetworkInterfaceId": {a.self.eni}, "SourceDestCheck.Value": {"false"}}, nil)
}

// call signs and sends a request and decodes its answer.
func (a *amazon) call(ctx context.Context, action string, v url.Values, into any) (err error) {
	defer func() { a.client.calls.add(action, err) }()
	keys, err := a.keys.get(ctx)
	if err != nil {
		return err
	}
	q := a.query("2016-11-15", action, v, cmp.Or(a.endpoint, "https://ec2."+a.self.region+"."+a.self.domain))
	q.keys = keys
	q.sign = func(r *http.Request) error {
		return a.signer.SignHTTP(ctx, keys.aws(), r, hexHash(q.body), "ec2", a.self.region, time.Now())
	}
	answer, err := a.client.send(ctx, q)
	if err != nil {
		return err
	}
	return answer.decodeAWS(action, into)
}

// query returns a request of the Query protocol.
func (a *amazon) query(version, action string, v url.Values, endpoint string) request {
	v = maps.Clone(v)
	v.Set("Action", action)
	v.Set("Version", version)
	return request{call: action, method: http.MethodPost, url: strings.TrimSuffix(endpoint, "/") + "/",
		body:   []byte(v.Encode()),
		header: map[string]string{"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}}
}

// decodeAWS decodes an answer, or its error.
func (a answer) decodeAWS(action string, into any) error {
	var element struct{ XMLName xml.Name }
	if isHTML(a) || xml.Unmarshal(a.body, &element) != nil ||
		a.ok() && element.XMLName.Local != action+"Response" {
		return a.unreadable(action, "XML")
	}
	if a.ok() {
		if into != nil && xml.Unmarshal(a.body, into) != nil {
			return a.unreadable(action, "XML")
		}
		return nil
	}
	type awsFailure struct{ Code, Message string }
	var failed struct {
		EC2 awsFailure `xml:"Errors>Error"`
		STS awsFailure `xml:"Error"`
	}
	if err := xml.Unmarshal(a.body, &failed); err != nil {
		return a.unreadable(action, "XML")
	}
	e := cmp.Or(failed.EC2, failed.STS)
	if e.Code == "" {
		return a.unreadable(action, "XML")
	}
	return a.failure(awsError(action, e.Code, e.Message))
}

// awsError classifies an error code of EC2.
func awsError(action, code, message string) *Error {
	e := &Error{Call: action, Code: code, Message: message, Kind: firstCode(code, []codeKind{
		{"RequestLimitExceeded", Throttled}, {"Throttl", Throttled},
		{"UnauthorizedOperation", Denied}, {"AccessDenied", Denied},
		{"RouteLimitExceeded", Quota},
		{"RouteAlreadyExists", Pending}, {"DependencyViolation", Pending},
		{"AuthFailure", Credentials}, {"RequestExpired", Credentials},
		{"ExpiredToken", Credentials}, {"InvalidClientTokenId", Credentials},
		{"InvalidIdentityToken", Credentials}, {"IDPRejectedClaim", Credentials},
		{"SignatureDoesNotMatch", Credentials},
		{"InternalError", Unavailable}, {"Unavailable", Unavailable},
		{"ServiceUnavailable", Unavailable}, {"Internal", Unavailable},
	})}
	switch {
	case e.Kind == Denied && action == assumeRole:
		e.Hint = "does the role AWS_ROLE_ARN trust this service account?"
	case e.Kind == Denied:
		e.Hint = missing("ec2:" + action)
	case e.Kind == Quota:
		e.Hint = "raise the quota 'Routes per route table' (L-93826ACB) of Amazon VPC"
	case strings.HasPrefix(code, "InvalidRouteTable"):
		e.Hint = "see config key RouteTableID"
	}
	return e
}

// aws returns the keys for the signer.
func (k keyPair) aws() aws.Credentials {
	return aws.Credentials{AccessKeyID: k.id, SecretAccessKey: k.secret, SessionToken: k.token}
}

// isHTML reports whether an answer is HTML.
func isHTML(a answer) bool {
	start := strings.ToLower(strings.TrimSpace(string(a.body[:min(len(a.body), 64)])))
	return strings.HasPrefix(start, "<!doctype html") || strings.HasPrefix(start, "<html") ||
		strings.HasPrefix(a.header.Get("Content-Type"), "text/html")
}
