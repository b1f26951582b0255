package cloud

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weft/ctrl/backend/cloud/testcloud"
)

// identity returns a rig whose instance has no role, and a file with a service account's token.
func identity(t *testing.T) (r *rig, file string) {
	t.Helper()
	c := testcloud.NewAWS()
	c.DeleteItem("iam/")
	c.SetKey("AKIDWEB", testcloud.Key{Secret: "web-secret", Token: "web-token"})
	c.Set("identity", "jwt-1")
	r = prepare(t, Config{Provider: AWS}, c)
	file = filepath.Join(t.TempDir(), "token")
	writeToken(t, file, "jwt-1\n")
	return r, file
}

func writeToken(t *testing.T, file, token string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
}

// wantHidden fails if the log has a token or key of identity.
func (r *rig) wantHidden(t *testing.T) {
	t.Helper()
	for _, secret := range []string{"jwt-", "web-secret", "web-token", "AKIDWEB"} {
		if strings.Contains(r.log.String(), secret) {
			t.Errorf("the log has %s: %s", secret, r.log)
		}
	}
}

func TestAWSWebIdentity(t *testing.T) {
	r, file := identity(t)
	t.Setenv("AWS_WEB_IDENTITY_TOKEN_FILE", file)
	t.Setenv("AWS_ROLE_ARN", "arn:aws:iam::1:role/weft")
	t.Setenv("AWS_ENDPOINT_URL_STS", r.cloud.API.URL)
	r.Set(me())
	r.run(t)
	r.awaitInPlace(t)
	if n := r.cloud.Count("AssumeRoleWithWebIdentity arn:aws:iam::1:role/weft weft"); n != 1 {
		t.Errorf("%d calls: %v", n, r.cloud.Requests())
	}
	// The kubelet replaces the token, and AWS the keys.
	r.cloud.Set("identity", "jwt-2")
	writeToken(t, file, "jwt-2")
	r.cloud.SetKey("AKIDWEB", testcloud.Key{Secret: "web-secret-2", Token: "web-token-2"})
	r.await(t, "refusal", func(Status) bool { return strings.Contains(r.log.String(), "ExpiredToken") })
	r.awaitInPlace(t)
	r.wantHidden(t)
}

func TestAWSWebIdentityErrors(t *testing.T) {
	for _, x := range []struct {
		name   string
		change func(c *testcloud.Cloud, file string)
		kind   Kind
		want   string
	}{
		{name: "no file", change: func(_ *testcloud.Cloud, file string) { os.Remove(file) },
			kind: Credentials, want: "AssumeRoleWithWebIdentity: open "},
		{name: "token refused", change: func(c *testcloud.Cloud, _ string) { c.Set("identity", "jwt-3") },
			kind: Credentials, want: "InvalidIdentityToken: No OpenIDConnect provider for (hidden)"},
		{name: "no trust", change: func(c *testcloud.Cloud, _ string) {
			c.Always("AssumeRoleWithWebIdentity", testcloud.Failure{Status: 403, Code: "AccessDenied", Message: "Not authorized."})
		}, kind: Denied, want: "AccessDenied: Not authorized: does the role AWS_ROLE_ARN trust this service account?"},
		{name: "page", change: func(c *testcloud.Cloud, _ string) {
			c.Always("AssumeRoleWithWebIdentity", testcloud.Failure{HTML: true})
		}, kind: Unavailable, want: "is text/html instead of XML"},
		{name: "no keys", change: func(c *testcloud.Cloud, _ string) { c.SetKey("AKIDWEB", testcloud.Key{}) },
			kind: Credentials, want: "AssumeRoleWithWebIdentity: the answer has no keys"},
	} {
		t.Run(x.name, func(t *testing.T) {
			r, file := identity(t)
			t.Setenv("AWS_WEB_IDENTITY_TOKEN_FILE", file)
			t.Setenv("AWS_ENDPOINT_URL_STS", r.cloud.API.URL)
			x.change(r.cloud, file)
			r.Set(me())
			r.run(t)
			wantText(t, r.awaitError(t, x.kind), x.want)
			r.wantHidden(t)
		})
	}
}

func TestAWSPodIdentity(t *testing.T) {
	r, file := identity(t)
	t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", r.cloud.Metadata.URL+"/v1/credentials")
	t.Setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", file)
	writeToken(t, file, "jwt-old")
	r.Set(me())
	r.run(t)
	wantText(t, r.awaitError(t, Credentials), "credentials of the container: status 400: [dd1c4c4f]: "+
		"(InvalidTokenException): token (hidden) cannot be validated")
	writeToken(t, file, "jwt-1")
	r.awaitInPlace(t)
	r.wantHidden(t)
}

// TestAWSAgents lists where the token of a pod may be sent.
func TestAWSAgents(t *testing.T) {
	for agent, ok := range map[string]bool{
		"http://169.254.170.23/v1/credentials": true, "http://[fd00:ec2::23]/v1/credentials": true,
		"http://localhost:1234/": true, "http://127.0.0.1/": true, "https://agent.example/": true,
		"http://agent.example/": false, "http://192.0.2.1/": false, "http://169.254.169.254/": false, "%": false,
	} {
		if err := checkAgent(agent); (err == nil) != ok {
			t.Errorf("%s: %v", agent, err)
		}
	}
}

// TestAWSKeysExpire renews keys a minute before their end.
func TestAWSKeysExpire(t *testing.T) {
	r, file := identity(t)
	t.Setenv("AWS_WEB_IDENTITY_TOKEN_FILE", file)
	t.Setenv("AWS_ENDPOINT_URL_STS", r.cloud.API.URL)
	a := r.provider.(*amazon)
	a.self = awsInstance{region: "eu-test-1", domain: "amazonaws.com"}
	for i, left := range []time.Duration{0, 2 * time.Minute, 30 * time.Second} {
		if i > 0 {
			a.keys.role.expires = time.Now().Add(left)
		}
		if _, err := a.keys.get(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := r.cloud.Count("AssumeRoleWithWebIdentity"); n != 2 {
		t.Errorf("%d calls", n)
	}
}
