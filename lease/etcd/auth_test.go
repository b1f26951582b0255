package etcd

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/authpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"weft/lease"
)

func TestAuth(t *testing.T) {
	server := serve(t)
	op := newOperator(t, server, "/coreos.com/network")
	op.put(t, "/config", onlyV4)
	ctx := t.Context()
	op.enableAuth(t, permission{"/coreos.com/network/", clientv3.PermReadWrite})
	config := func(user, password string) Config {
		c := testConfig(server, "/coreos.com/network", 0)
		c.Username, c.Password = user, password
		return c
	}
	s := open(t, config("weft", "secret"))
	n, err := s.Network(ctx)
	if err != nil {
		t.Fatal(err)
	}
	l := mustClaim(t, s, request(n, 0))
	if _, err := s.Renew(ctx, l); err != nil {
		t.Error(err)
	}
	startWatch(t, s).next(t)
	if s.getOwn().ownerLeaseID == clientv3.NoLease {
		t.Error("no owner keys with a role for the prefix")
	}
	if err := reach(t, config("weft", "wrong")); err == nil ||
		!strings.Contains(err.Error(), "invalid user ID or password") {
		t.Errorf("wrong password: %v", err)
	}
	if err := reach(t, config("", "")); err == nil {
		t.Error("access without a user permitted")
	}

	// Login must not block Open or a cancelled call.
	server.Close()
	start := time.Now()
	if err := reach(t, config("weft", "secret")); err == nil || time.Since(start) > 2*defaultCallTimeout {
		t.Errorf("without a server: %v after %s", err, time.Since(start))
	}
}

// permission applies to all keys with a prefix.
type permission struct {
	prefix string
	kind   authpb.Permission_Type
}

// enableAuth enables authentication with the users root and weft. weft has the given permissions.
func (o operator) enableAuth(t *testing.T, permissions ...permission) {
	t.Helper()
	ctx := t.Context()
	steps := []func() error{
		func() error { _, err := o.UserAdd(ctx, "root", "r"); return err },
		func() error { _, err := o.UserGrantRole(ctx, "root", "root"); return err },
		func() error { _, err := o.UserAdd(ctx, "weft", "secret"); return err },
		func() error { _, err := o.RoleAdd(ctx, "network"); return err },
		func() error { _, err := o.UserGrantRole(ctx, "weft", "network"); return err },
	}
	for _, p := range permissions {
		steps = append(steps, func() error {
			_, err := o.RoleGrantPermission(ctx, "network", p.prefix, clientv3.GetPrefixRangeEnd(p.prefix),
				clientv3.PermissionType(p.kind))
			return err
		})
	}
	steps = append(steps, func() error { _, err := o.AuthEnable(ctx); return err })
	for _, step := range steps {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFlannelRole(t *testing.T) {
	for _, test := range []struct {
		name  string
		extra []permission
	}{
		{"no permission for owner keys", nil},
		{"read permission only", []permission{{"/net/weft/", clientv3.PermRead}}},
		{"write permission only", []permission{{"/net/weft/", clientv3.PermWrite}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			server := serve(t)
			op := newOperator(t, server, "/net")
			op.put(t, "/config", onlyV4)
			op.enableAuth(t, append(test.extra, permission{"/net/config", clientv3.PermRead},
				permission{"/net/subnets", clientv3.PermReadWrite})...)
			c := testConfig(server, "/net", 0)
			var log lockedBuffer
			c.Username, c.Password, c.Log = "weft", "secret", slog.New(slog.NewTextHandler(&log, nil))
			s := open(t, c)
			s.ownerTTL = time.Second // for many keep-alives
			n, err := s.Network(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			w := startWatch(t, s)
			if got := w.next(t); got.Leases.Len() != 0 {
				t.Errorf("first list: %+v", got)
			}
			l := mustClaim(t, s, request(n, 0))
			if got := w.next(t); got.Leases.Len() != 1 || !lease.List(got.Leases)[0].SameSubnets(l) {
				t.Errorf("list: %+v", got)
			}
			if err := s.keepAlive(t.Context()); err != nil {
				t.Errorf("keep-alive: %v", err)
			}
			startWatch(t, s).next(t)
			if grant := s.getOwn().ownerLeaseID; grant != clientv3.NoLease {
				t.Errorf("etcd lease of an owner key: %x", grant)
			}
			l.BackendType = "host-gw"
			if l, err = s.Renew(t.Context(), l); err != nil {
				t.Fatal(err)
			}
			if got := w.next(t); lease.List(got.Leases)[0].BackendType != "host-gw" || got.RenewNow {
				t.Errorf("list: %+v", got)
			}
			if again := mustClaim(t, s, request(n, 0)); !again.SameSubnets(l) {
				t.Errorf("had %s, got %s", l.Subnet, again.Subnet)
			}
			if n := strings.Count(log.String(), "prefix=/net/"); n != 1 ||
				strings.Count(log.String(), "level=") != 1 {
				t.Errorf("log:\n%s", log.String())
			}
		})
	}
}

func TestInsufficientRole(t *testing.T) {
	server := serve(t)
	op := newOperator(t, server, "/net")
	op.enableAuth(t, permission{"/net/weft/", clientv3.PermReadWrite})
	c := testConfig(server, "/net", 0)
	c.Username, c.Password = "weft", "secret"
	s := open(t, c)
	_, err := s.Claim(t.Context(), request(parseNetwork(t, onlyV4), 0))
	if err == nil || !strings.Contains(err.Error(), "/net/subnets/: etcdserver: permission denied") {
		t.Errorf("got %v", err)
	}
	if s.weftKeys() == nil {
		t.Error("permitted owner keys disabled")
	}
}
