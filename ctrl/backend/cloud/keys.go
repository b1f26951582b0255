package cloud

import (
	"context"
	"encoding/json"
	"net/url"
	"os"
	"strings"
	"time"
)

// keyPair is a pair of keys, with the token of a role.
type keyPair struct {
	id, secret, token string
	expires           time.Time // zero: never
}

// configured returns the keys of the config, or else those of flannel's environment variables.
func configured(c Config) keyPair {
	if c.AccessKeyID != "" {
		return keyPair{id: string(c.AccessKeyID), secret: string(c.AccessKeySecret)}
	}
	return keyPair{id: os.Getenv("ACCESS_KEY_ID"), secret: os.Getenv("ACCESS_KEY_SECRET")}
}

// keySource returns the keys for requests: the configured ones, or those of the instance's role.
type keySource struct {
	configured keyPair
	role       keyPair
	// fetch gets those of the role.
	fetch func(ctx context.Context) (keyPair, error)
}

// roleOrConfigured returns the source of the keys of the config or the environment, or else of the
// role at a path of the metadata.
func roleOrConfigured(c Config, m *metadataService, path string, names keyNames) keySource {
	return keySource{configured: configured(c), fetch: func(ctx context.Context) (keyPair, error) {
		return m.role(ctx, path, "attach one, or set AccessKeyID and AccessKeySecret", names)
	}}
}

// renewal is how long before their end keys are replaced. Metadata services have new ones at least
// that early.
const renewal = time.Minute

// get returns valid keys.
func (s *keySource) get(ctx context.Context) (keyPair, error) {
	if s.configured.id != "" {
		return s.configured, nil
	}
	if s.role.id != "" && (s.role.expires.IsZero() || time.Until(s.role.expires) > renewal) {
		return s.role, nil
	}
	role, err := s.fetch(ctx)
	if err != nil {
		return keyPair{}, err
	}
	s.role = role
	return role, nil
}

// forget drops the keys of the role, which the cloud may have refused.
func (s *keySource) forget() { s.role = keyPair{} }

// scrub removes the keys from a text of the cloud, which may repeat the request.
func (k keyPair) scrub(text string) string {
	for _, s := range []string{k.secret, k.token, k.id} {
		if s != "" {
			text = strings.NewReplacer(s, hidden, url.QueryEscape(s), hidden, percent(s), hidden).Replace(text)
		}
	}
	return text
}

// keyNames are the names of the parts of a key pair in JSON.
type keyNames struct{ id, secret, token string }

// decodeKeys decodes a key pair in JSON, as the answers of metadata services have them.
func decodeKeys(text string, names keyNames) (keyPair, error) {
	var parts map[string]any
	if json.Unmarshal([]byte(text), &parts) != nil {
		return keyPair{}, &Error{Call: "metadata", Kind: Credentials,
			Message: "credentials of the role are not JSON"}
	}
	part := func(name string) string {
		s, _ := parts[name].(string)
		return s
	}
	k := keyPair{part(names.id), part(names.secret), part(names.token), timeOf(part("Expiration"))}
	if k.id == "" || k.secret == "" {
		e := &Error{Call: "metadata", Kind: Credentials, Message: "the metadata has no keys of the role"}
		if message := part("Message"); message != "" {
			e.Code, e.Message = part("Code"), k.scrub(message)
		}
		return keyPair{}, e
	}
	return k, nil
}

// timeOf parses a time of a metadata service; zero if it is not one.
func timeOf(text string) time.Time {
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return time.Time{}
	}
	return t
}
