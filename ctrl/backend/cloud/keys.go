package cloud

import (
	"cmp"
	"context"
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
	if role.id == "" || role.secret == "" {
		return keyPair{}, &Error{Call: "metadata", Kind: Credentials,
			Message: "the metadata has no keys of the role"}
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
			text = strings.ReplaceAll(text, s, hidden)
		}
	}
	return text
}

// timeOf parses a time of a metadata service.
func timeOf(text string) time.Time {
	t, _ := time.Parse(time.RFC3339, cmp.Or(text, "-"))
	return t
}
