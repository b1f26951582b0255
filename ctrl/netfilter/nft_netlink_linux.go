package netfilter

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// netlinkTimeout limits one exchange with the kernel, which answers within milliseconds. Without
// it, the library would wait forever for a lost answer.
const netlinkTimeout = 10 * time.Second

// dialNFT returns a connection, for which the library opens a new socket per exchange. Each
// exchange fails after netlinkTimeout.
func dialNFT() (*nftables.Conn, error) {
	conn, err := nftables.New(nftables.WithSockOptions(func(c *netlink.Conn) error {
		return c.SetDeadline(time.Now().Add(netlinkTimeout))
	}))
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	return conn, nil
}

// commit sends the queued operations as one transaction. It returns only the first of several
// errors: if one operation fails, those that depend on it fail too.
func commit(conn *nftables.Conn) error {
	err := conn.Flush()
	var errno unix.Errno
	if errors.As(err, &errno) {
		return fmt.Errorf("nftables transaction: %w", errno)
	}
	return err
}

// tableName returns flannel's name for its table (pkg/trafficmngr/nftables).
func tableName(f family) string {
	if f == ipv4 {
		return "flannel-ipv4"
	}
	return "flannel-ipv6"
}

func nftFamily(f family) nftables.TableFamily {
	if f == ipv4 {
		return nftables.TableFamilyIPv4
	}
	return nftables.TableFamilyIPv6
}

// chainsOf returns the chains of a table, and whether the table exists.
func chainsOf(conn *nftables.Conn, t *nftables.Table) ([]*nftables.Chain, bool, error) {
	tables, err := conn.ListTablesOfFamily(t.Family)
	if err != nil {
		return nil, false, fmt.Errorf("list tables: %w", err)
	}
	isTable := func(have *nftables.Table) bool { return have.Name == t.Name }
	if !slices.ContainsFunc(tables, isTable) {
		return nil, false, nil
	}
	all, err := conn.ListChainsOfTableFamily(t.Family)
	if err != nil {
		return nil, true, fmt.Errorf("list chains: %w", err)
	}
	ofOtherTable := func(c *nftables.Chain) bool { return c.Table.Name != t.Name }
	return slices.DeleteFunc(all, ofOtherTable), true, nil
}

// hasNFTTable reports whether nftables has a table. iptables-nft keeps its tables there, under the
// names they have in iptables.
func hasNFTTable(f family, name string) bool {
	conn, err := dialNFT()
	if err != nil {
		return false
	}
	_, exists, err := chainsOf(conn, &nftables.Table{Name: name, Family: nftFamily(f)})
	return err == nil && exists
}

// isNFTUnsupported reports whether an error means that the kernel has no nftables, or none for the
// family.
func isNFTUnsupported(err error) bool {
	return slices.ContainsFunc([]error{unix.EOPNOTSUPP, unix.EPROTONOSUPPORT, unix.EAFNOSUPPORT,
		unix.EINVAL, unix.ENOENT}, func(errno error) bool { return errors.Is(err, errno) })
}

// toNFTRule converts a rule to the kernel's form.
func toNFTRule(f family, t *nftables.Table, c *nftables.Chain, r rule) *nftables.Rule {
	k := &nftables.Rule{Table: t, Chain: c, Exprs: encode(f, r)}
	if r.comment != "" {
		k.UserData = userdata.AppendString(nil, userdata.TypeComment, r.comment)
	}
	return k
}

// fromNFTRule is the inverse of toNFTRule. It accepts rules of any program.
func fromNFTRule(f family, c baseChain, k *nftables.Rule) kernelRule {
	d := decode(f, k.Exprs)
	d.table, d.chain = c.table, c.chain
	comment, ok := userdata.GetString(k.UserData, userdata.TypeComment)
	if ok && d.verdict == verdictNoTrack {
		d.comment = comment
	}
	return kernelRule{d.rule, d.exact()}
}

func addChain(conn *nftables.Conn, t *nftables.Table, c baseChain) *nftables.Chain {
	policy := nftables.ChainPolicyAccept
	return conn.AddChain(&nftables.Chain{
		Name: c.name, Table: t, Type: c.kind,
		Hooknum: &c.hook, Priority: &c.priority, Policy: &policy,
	})
}
