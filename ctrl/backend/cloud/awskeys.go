package cloud

import (
	"bytes"
	"cmp"
	"context"
	"encoding/xml"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
)

// environmentKeys returns the keys of the environment, under the names of the AWS SDKs, and the
// token also under flannel's.
func environmentKeys() keyPair {
	return keyPair{
		id: os.Getenv("AWS_ACCESS_KEY_ID"), secret: os.Getenv("AWS_SECRET_ACCESS_KEY"),
		token: cmp.Or(os.Getenv("AWS_SESSION_TOKEN"), os.Getenv("AWS_SECURITY_TOKEN")),
	}
}

// awsKeyNames are those of the instance metadata and of the Pod Identity agent.
var awsKeyNames = keyNames{"AccessKeyId", "SecretAccessKey", "Token"}

// fetchKeys returns the keys of the role that the environment names, in the order of the AWS SDKs,
// or of the IAM role of this instance.
func (a *amazon) fetchKeys(ctx context.Context) (keyPair, error) {
	switch file, agent := os.Getenv("AWS_WEB_IDENTITY_TOKEN_FILE"), os.Getenv("AWS_CONTAINER_CREDENTIALS_FULL_URI"); {
	case file != "":
		return a.webIdentityKeys(ctx, file)
	case agent != "":
		return a.agentKeys(ctx, agent)
	}
	return a.metadata.role(ctx, "iam/security-credentials/",
		"attach an IAM role, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", awsKeyNames)
}

const assumeRole = "AssumeRoleWithWebIdentity"

// webIdentityKeys returns the keys of the role of the service account with the token in a file, by
// the one call of STS that needs no signature.
func (a *amazon) webIdentityKeys(ctx context.Context, file string) (k keyPair, err error) {
	defer func() { a.client.calls.add(assumeRole, err) }()
	token, err := readToken(assumeRole, file)
	if err != nil {
		return keyPair{}, err
	}
	endpoint := cmp.Or(os.Getenv("AWS_ENDPOINT_URL_STS"), "https://sts."+a.self.region+"."+a.self.domain)
	q := a.query("2011-06-15", assumeRole, url.Values{
		"RoleArn": {os.Getenv("AWS_ROLE_ARN")}, "WebIdentityToken": {token},
		"RoleSessionName": {cmp.Or(os.Getenv("AWS_ROLE_SESSION_NAME"), "weft")},
	}, endpoint)
	q.keys.token = token
	answer, err := a.client.send(ctx, q)
	if err != nil {
		return keyPair{}, err
	}
	return answer.decodeRole()
}

// decodeRole decodes the answer of STS.
func (a answer) decodeRole() (keyPair, error) {
	var r struct {
		XMLName    xml.Name `xml:"AssumeRoleWithWebIdentityResponse"`
		ID         string   `xml:"AssumeRoleWithWebIdentityResult>Credentials>AccessKeyId"`
		Secret     string   `xml:"AssumeRoleWithWebIdentityResult>Credentials>SecretAccessKey"`
		Token      string   `xml:"AssumeRoleWithWebIdentityResult>Credentials>SessionToken"`
		Expiration string   `xml:"AssumeRoleWithWebIdentityResult>Credentials>Expiration"`
	}
	if err := a.decodeAWS(assumeRole, &r); err != nil {
		return keyPair{}, err
	}
	if r.ID == "" || r.Secret == "" {
		return keyPair{}, &Error{Call: assumeRole, Kind: Credentials, Message: "the answer has no keys"}
	}
	return keyPair{r.ID, r.Secret, r.Token, timeOf(r.Expiration)}, nil
}

// agentKeys returns the keys of the pod's role from the agent of EKS Pod Identity.
func (a *amazon) agentKeys(ctx context.Context, agent string) (k keyPair, err error) {
	const call = "credentials of the container"
	defer func() { a.client.calls.add("credentials", err) }()
	if err := checkAgent(agent); err != nil {
		return keyPair{}, err
	}
	token := os.Getenv("AWS_CONTAINER_AUTHORIZATION_TOKEN")
	if file := os.Getenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"); file != "" {
		if token, err = readToken(call, file); err != nil {
			return keyPair{}, err
		}
	}
	c := client{http: a.metadata.http}
	answer, err := c.send(ctx, request{call: call, method: http.MethodGet, url: agent,
		header: map[string]string{"Authorization": token}, keys: keyPair{token: token}})
	if err != nil {
		return keyPair{}, err
	}
	if !answer.ok() {
		return keyPair{}, answer.failure(&Error{Call: call, Kind: Credentials,
			Message: fmt.Sprintf("status %d: %s", answer.status, answer.body)})
	}
	return decodeKeys(string(answer.body), awsKeyNames)
}

// checkAgent returns an error for a URL to which the AWS SDKs send no token.
func checkAgent(agent string) error {
	u, err := url.Parse(agent)
	if err == nil {
		host, err := netip.ParseAddr(u.Hostname())
		if u.Scheme == "https" || u.Hostname() == "localhost" || err == nil && (host.IsLoopback() ||
			slices.Contains([]string{"169.254.170.2", "169.254.170.23", "fd00:ec2::23"}, host.String())) {
			return nil
		}
	}
	return &Error{Call: "credentials of the container", Kind: Credentials,
		Message: "AWS_CONTAINER_CREDENTIALS_FULL_URI is neither HTTPS nor the address of an agent on this host"}
}

// readToken reads the token of a service account, which the kubelet replaces now and then.
func readToken(call, file string) (string, error) {
	token, err := os.ReadFile(file)
	if err != nil {
		return "", &Error{Call: call, Kind: Credentials, err: err}
	}
	return string(bytes.TrimSpace(token)), nil
}
