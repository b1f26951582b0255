package ctrl

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
)

// Key is a WireGuard key: private, public or pre-shared. String hides it, because most keys are
// secret.
type Key [32]byte

// ParseKey parses a key in base64, as printed by `wg genkey`.
func ParseKey(s string) (Key, error) {
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return Key{}, errors.New("key is not base64") // the cause would quote it
	}
	if len(b) != len(Key{}) {
		return Key{}, fmt.Errorf("key has %d bytes, want %d", len(b), len(Key{}))
	}
	return Key(b), nil
}

// NewPrivateKey returns a random private key, clamped as in RFC 7748, section 5.
func NewPrivateKey() Key {
	var k Key
	rand.Read(k[:]) // never fails
	k[0] &= 248
	k[31] = k[31]&127 | 64
	return k
}

// Public returns the public key of a private key.
func (k Key) Public() (Key, error) {
	if k == (Key{}) {
		return Key{}, errors.New("no private key")
	}
	private, err := ecdh.X25519().NewPrivateKey(k[:])
	if err != nil {
		return Key{}, fmt.Errorf("private key: %w", err)
	}
	return Key(private.PublicKey().Bytes()), nil
}

// Base64 returns the key in the form that ParseKey reads.
func (k Key) Base64() string { return base64.StdEncoding.EncodeToString(k[:]) }

// String hides the key.
func (k Key) String() string {
	if k == (Key{}) {
		return "(none)"
	}
	return "(hidden)"
}
