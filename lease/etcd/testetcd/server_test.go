package testetcd

import (
	"net/netip"
	"testing"
)

func TestServerRestart(t *testing.T) {
	s, err := Start(Config{Dir: t.TempDir() + "/data", Listen: netip.MustParseAddrPort("127.0.0.1:0")})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	first := s.Endpoint()
	if err := s.Wipe(); err == nil {
		t.Error("Wipe of a running server succeeded")
	}
	if err := s.Compact(); err != nil {
		t.Error(err)
	}
	s.Close()
	s.Close() // closing twice is permitted
	if err := s.Wipe(); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	if s.Endpoint() != first {
		t.Errorf("endpoint %s became %s", first, s.Endpoint())
	}
	if err := s.Start(); err == nil {
		t.Error("Start of a running server succeeded")
	}
}

func TestStartPortInUse(t *testing.T) {
	c := Config{Dir: t.TempDir() + "/data", Listen: netip.MustParseAddrPort("127.0.0.1:0")}
	s, err := Start(c)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	c.Dir = t.TempDir() + "/data"
	c.Listen = s.config.Listen
	if other, err := Start(c); err == nil {
		other.Close()
		t.Errorf("two servers on %s", c.Listen)
	} else {
		t.Log(err)
	}
}
