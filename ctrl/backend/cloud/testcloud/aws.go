package testcloud

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
)

// NewAWS returns an Amazon VPC with an instance i-1 of one interface, eni-1 in subnet-1, whose
// address is 172.31.0.1, and a main table rtb-main. The role has the key AKIDROLE.
func NewAWS() *Cloud {
	c := newCloud(awsAPI, awsMetadata, map[string]string{
		"instance-id": "i-1", "placement/region": "eu-test-1", "services/domain": "amazonaws.com",
		"network/interfaces/macs/":                               "02:00:00:00:00:01/",
		"network/interfaces/macs/02:00:00:00:00:01/interface-id": "eni-1",
		"network/interfaces/macs/02:00:00:00:00:01/subnet-id":    "subnet-1",
		"network/interfaces/macs/02:00:00:00:00:01/vpc-id":       "vpc-1",
		"network/interfaces/macs/02:00:00:00:00:01/local-ipv4s":  "172.31.0.1",
		"iam/security-credentials/":                              "node-role",
	})
	c.SetAWSRole("AKIDROLE", Key{"role-secret", "role-token"})
	c.AddTable("rtb-main")
	c.AddRoute("rtb-main", Route{Dst: netip.MustParsePrefix("172.31.0.0/16"), Target: "local"})
	return c
}

// SetAWSRole makes a key that of the instance's role, and valid.
func (c *Cloud) SetAWSRole(id string, k Key) {
	c.SetKey(id, k)
	c.SetItem("iam/security-credentials/node-role", fmt.Sprintf(`{"Code":"Success","Type":"AWS-HMAC",
		"AccessKeyId":%q,"SecretAccessKey":%q,"Token":%q,"Expiration":%q}`, id, k.Secret, k.Token,
		time.Now().Add(6*time.Hour).UTC().Format(time.RFC3339)))
}

// awsMetadata is the instance metadata service, version 2: no item without a token.
func awsMetadata(c *Cloud) http.HandlerFunc {
	const token = "imds-token"
	return func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/credentials" {
			c.podIdentity(w, r)
			return
		}
		if r.URL.Path == "/latest/api/token" {
			if r.Method != http.MethodPut || r.Header.Get("X-aws-ec2-metadata-token-ttl-seconds") == "" {
				c.problem("token request %s %v", r.Method, r.Header)
			}
			w.Header().Set("X-aws-ec2-metadata-token-ttl-seconds", "21600")
			io.WriteString(w, token)
			return
		}
		if r.Header.Get("X-aws-ec2-metadata-token") != token {
			c.problem("metadata %s without a token", r.URL.Path)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		c.item(w, r, "/latest/meta-data/")
	}
}

// item answers with an item of the metadata. The caller holds the lock.
func (c *Cloud) item(w http.ResponseWriter, r *http.Request, root string) {
	path := strings.TrimPrefix(r.URL.Path, root)
	v, ok := c.items[path]
	if !ok {
		v, ok = c.items[path+"/"]
	}
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	io.WriteString(w, v)
}

// assumeRole is the call of STS. The property identity is the token that it accepts; the keys are
// AKIDWEB's. The caller holds the lock.
func (c *Cloud) assumeRole(w http.ResponseWriter, r *http.Request, v url.Values) {
	w.Header().Set("Content-Type", "text/xml")
	f, failed := c.record("AssumeRoleWithWebIdentity", v.Get("RoleArn")+" "+v.Get("RoleSessionName"))
	if failed && c.fail(w, r, f) {
		return
	}
	if v.Get("Version") != "2011-06-15" || r.Header.Get("Authorization") != "" {
		c.problem("AssumeRoleWithWebIdentity %v", v)
	}
	if !failed && v.Get("WebIdentityToken") != c.extra["identity"] {
		// As the real one may, it repeats the token.
		f = Failure{Status: 400, Code: "InvalidIdentityToken", Message: "No OpenIDConnect provider for " + v.Get("WebIdentityToken")}
	}
	if f.Code != "" {
		w.WriteHeader(f.Status)
		fmt.Fprintf(w, `<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type>`+
			`<Code>%s</Code><Message>%s</Message></Error><RequestId>1</RequestId></ErrorResponse>`, f.Code, f.Message)
		return
	}
	fmt.Fprintf(w, `<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">`+
		`<AssumeRoleWithWebIdentityResult><Audience>sts.amazonaws.com</Audience><Credentials>`+
		`<AccessKeyId>AKIDWEB</AccessKeyId><SecretAccessKey>%s</SecretAccessKey><SessionToken>%s</SessionToken>`+
		`<Expiration>%s</Expiration></Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>`,
		c.keys["AKIDWEB"].Secret, c.keys["AKIDWEB"].Token, time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
}

// podIdentity is the agent of EKS Pod Identity, which accepts the same token. The caller holds the
// lock.
func (c *Cloud) podIdentity(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") != c.extra["identity"] {
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprintf(w, "[dd1c4c4f]: (InvalidTokenException): token %s cannot be validated", r.Header.Get("Authorization"))
		return
	}
	fmt.Fprintf(w, `{"AccessKeyId":"AKIDWEB","SecretAccessKey":%q,"Token":%q,"AccountId":"1","Expiration":%q}`,
		c.keys["AKIDWEB"].Secret, c.keys["AKIDWEB"].Token, time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
}

type awsItem struct {
	Dst    string `xml:"destinationCidrBlock,omitempty"`
	Dst6   string `xml:"destinationIpv6CidrBlock,omitempty"`
	Prefix string `xml:"destinationPrefixListId,omitempty"`
	ENI    string `xml:"networkInterfaceId,omitempty"`
	GW     string `xml:"gatewayId,omitempty"`
	State  string `xml:"state"`
}

type awsTable struct {
	ID     string    `xml:"routeTableId"`
	Routes []awsItem `xml:"routeSet>item"`
}

// awsAPI is the EC2 Query API.
func awsAPI(c *Cloud) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		defer c.mu.Unlock()
		body, _ := io.ReadAll(r.Body)
		v, err := url.ParseQuery(string(body))
		if v.Get("Action") == "AssumeRoleWithWebIdentity" {
			c.assumeRole(w, r, v)
			return
		}
		if err != nil || r.Method != http.MethodPost || v.Get("Version") != "2016-11-15" {
			c.problem("request %s %q", r.Method, body)
		}
		action := v.Get("Action")
		f, failed := c.record(action, awsParameters(v))
		if failed && c.fail(w, r, f) {
			return
		}
		w.Header().Set("Content-Type", "text/xml;charset=UTF-8")
		if !failed {
			f.Code, f.Message = c.awsSignature(r, body)
			f.Status = http.StatusUnauthorized
		}
		if f.Code == "" {
			f.Status = http.StatusBadRequest
			f.Code, f.Message = c.awsAct(w, action, v)
		}
		if f.Code != "" {
			w.WriteHeader(f.Status)
			fmt.Fprintf(w, `<?xml version="1.0" encoding="UTF-8"?>`+"\n"+
				`<Response><Errors><Error><Code>%s</Code><Message>%s</Message></Error></Errors>`+
				`<RequestID>ea966190-f9aa-478e-9ede-example</RequestID></Response>`, f.Code, f.Message)
		}
	}
}

// awsParameters returns the parameters that differ between requests.
func awsParameters(v url.Values) string {
	p := url.Values{}
	for k, list := range v {
		if k != "Action" && k != "Version" {
			p[k] = list
		}
	}
	text, _ := url.QueryUnescape(p.Encode())
	return text
}

// awsAct does an action. It returns the code of an error.
func (c *Cloud) awsAct(w http.ResponseWriter, action string, v url.Values) (code, message string) {
	table := v.Get("RouteTableId")
	dst, _ := netip.ParsePrefix(v.Get("DestinationCidrBlock") + v.Get("DestinationIpv6CidrBlock"))
	_, known := c.tables[table]
	eni := v.Get("NetworkInterfaceId")
	switch {
	case action == "DescribeRouteTables":
		return c.awsDescribe(w, v)
	case strings.HasPrefix(action, "Modify"):
		if v.Get("SourceDestCheck.Value") != "false" {
			c.problem("%s: %v", action, v)
		}
	case !known:
		return "InvalidRouteTableID.NotFound", "The routeTable ID '" + table + "' does not exist"
	case action == "CreateRoute":
		if !c.create(table, Route{Dst: dst, Target: eni}) {
			return "RouteAlreadyExists", "The route identified by " + dst.String() + " already exists."
		}
	case action == "ReplaceRoute":
		if !c.remove(table, func(r Route) bool { return r.Dst == dst }) {
			return "InvalidParameterValue", "There is no route defined for '" + dst.String() + "' in the route table."
		}
		c.create(table, Route{Dst: dst, Target: eni})
	case action == "DeleteRoute":
		if !c.remove(table, func(r Route) bool { return r.Dst == dst }) {
			return "InvalidRoute.NotFound", "no route with destination-cidr-block " + dst.String()
		}
	default:
		c.problem("action %s", action)
		return "InvalidAction", "The action " + action + " is not valid for this web service."
	}
	fmt.Fprintf(w, `<%[1]sResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><requestId>59dbff89</requestId><return>true</return></%[1]sResponse>`, action)
	return "", ""
}

// awsDescribe lists tables by ID or filters.
func (c *Cloud) awsDescribe(w http.ResponseWriter, v url.Values) (code, message string) {
	var ids []string
	switch id := v.Get("RouteTableId.1"); {
	case id != "":
		if _, ok := c.tables[id]; !ok {
			return "InvalidRouteTableID.NotFound", "The routeTable ID '" + id + "' does not exist"
		}
		ids = []string{id}
	case v.Get("Filter.1.Name") == "association.subnet-id":
		if id, ok := c.assoc[v.Get("Filter.1.Value.1")]; ok {
			ids = []string{id}
		}
	case v.Get("Filter.1.Name") == "vpc-id" && v.Get("Filter.2.Name") == "association.main" &&
		v.Get("Filter.2.Value.1") == "true":
		if v.Get("Filter.1.Value.1") == "vpc-1" {
			ids = c.order[:1]
		}
	default:
		c.problem("filters %v", v)
	}
	// A page may be empty and have a successor.
	var out struct {
		XMLName xml.Name   `xml:"http://ec2.amazonaws.com/doc/2016-11-15/ DescribeRouteTablesResponse"`
		Request string     `xml:"requestId"`
		Tables  []awsTable `xml:"routeTableSet>item"`
		Next    string     `xml:"nextToken,omitempty"`
	}
	if v.Get("NextToken") == "" || c.extra["loop"] != "" {
		out.Next = "page-0"
	} else {
		for _, id := range ids {
			out.Tables = append(out.Tables, c.awsTable(id))
		}
	}
	xml.NewEncoder(w).Encode(out)
	return "", ""
}

func (c *Cloud) awsTable(id string) awsTable {
	t := awsTable{ID: id, Routes: []awsItem{{Prefix: "pl-63a5400a", GW: "vpce-1", State: "active"}}}
	for _, r := range c.listed(id) {
		i := awsItem{State: "active", ENI: r.Target}
		if r.BlackHole {
			i.State = "blackhole"
		}
		if r.Dst.Addr().Is4() {
			i.Dst = r.Dst.String()
		} else {
			i.Dst6 = r.Dst.String()
		}
		t.Routes = append(t.Routes, i)
	}
	return t
}

var awsAuthorization = regexp.MustCompile(`^AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([^/]+)/ec2/aws4_request, SignedHeaders=([a-z0-9;-]+), Signature=([0-9a-f]{64})$`)

// awsSignature verifies a signature of version 4. It returns the code of an error.
func (c *Cloud) awsSignature(r *http.Request, body []byte) (code, message string) {
	m := awsAuthorization.FindStringSubmatch(r.Header.Get("Authorization"))
	if m == nil {
		c.problem("Authorization: %s", r.Header.Get("Authorization"))
		return "MissingAuthenticationToken", ""
	}
	id, date, region, signed, signature := m[1], m[2], m[3], m[4], m[5]
	key, ok := c.keys[id]
	if !ok {
		return "AuthFailure", "AWS was not able to validate the provided access credentials"
	}
	if r.Header.Get("X-Amz-Security-Token") != key.Token {
		return "ExpiredToken", "The security token included in the request is expired"
	}
	names := strings.Split(signed, ";")
	if !slices.Contains(names, "host") || !slices.Contains(names, "x-amz-date") {
		c.problem("signed headers %s", signed)
	}
	canonical := r.Method + "\n/\n\n"
	for _, name := range names {
		v := r.Header.Get(name)
		switch name {
		case "host":
			v = r.Host
		case "content-length":
			v = fmt.Sprint(r.ContentLength)
		}
		canonical += name + ":" + strings.TrimSpace(v) + "\n"
	}
	canonical += "\n" + signed + "\n" + sha(body)
	at := r.Header.Get("X-Amz-Date")
	if t, err := time.Parse("20060102T150405Z", at); err != nil || time.Since(t).Abs() > 5*time.Minute || !strings.HasPrefix(at, date) {
		return "RequestExpired", "Request has expired."
	}
	text := "AWS4-HMAC-SHA256\n" + at + "\n" + date + "/" + region + "/ec2/aws4_request\n" + sha([]byte(canonical))
	k := mac(mac(mac(mac([]byte("AWS4"+key.Secret), date), region), "ec2"), "aws4_request")
	if region != "eu-test-1" || hex.EncodeToString(mac(k, text)) != signature {
		return "SignatureDoesNotMatch", "The request signature we calculated does not match the signature you provided."
	}
	return "", ""
}

func sha(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}
