package netfilter

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// netlinkLimit bounds one exchange with the kernel, which answers in milliseconds; the library would wait for ever for
	// an answer that was lost.
	netlinkLimit = 10 * time.Second
	// probeTable exists only within the transaction that asks what the kernel can do.
	probeTable = "weft-probe"
	// beforeSourceNAT is one earlier than where iptables' nat table and flannel's chain have their place.
	beforeSourceNAT = 100 - 1
)

// tableName is flannel's name for its table (pkg/trafficmngr/nftables).
func tableName(f family) string {
	if f == ipv4 {
		return "flannel-ipv4"
	}
	return "flannel-ipv6"
}

func kernelFamily(f family) nftables.TableFamily {
	if f == ipv4 {
		return nftables.TableFamilyIPv4
	}
	return nftables.TableFamilyIPv6
}

// baseChain is a chain of our nftables table: which rules it holds, by their place in iptables, and where the kernel
// calls it.
type baseChain struct {
	name         string
	table, chain string
	kind         nftables.ChainType
	hook         nftables.ChainHook
	priority     nftables.ChainPriority
}

func baseChains() []baseChain {
	nat, filter := nftables.ChainTypeNAT, nftables.ChainTypeFilter
	raw := *nftables.ChainPriorityRaw
	return []baseChain{
		{"keep-source", tableNAT, chainKeepSource, nat, *nftables.ChainHookPostrouting, beforeSourceNAT},
		{"postrtg", tableNAT, chainMasquerade, nat, *nftables.ChainHookPostrouting, *nftables.ChainPriorityNATSource},
		{"forward", tableFilter, chainForward, filter, *nftables.ChainHookForward, *nftables.ChainPriorityFilter},
		{"prerouting", tableRaw, hookPrerouting, filter, *nftables.ChainHookPrerouting, raw},
		{"output", tableRaw, hookOutput, filter, *nftables.ChainHookOutput, raw},
	}
}

// nft is nftables for both families, straight over netlink; an applier.
type nft struct {
	plainPorts map[family]bool  // the kernel cannot draw ports at random
	noTrackErr map[family]error // why packets cannot be left untracked
}

// openNFT asks the kernel for what the rules need and returns an error where it lacks it.
func openNFT(want map[family][]rule) (applier, error) {
	n := &nft{plainPorts: map[family]bool{}, noTrackErr: map[family]error{}}
	for _, f := range families() {
		for _, c := range baseChains() {
			rules := nftRules(c, want[f])
			if len(rules) == 0 {
				continue
			}
			err := try(f, c, rules)
			if err != nil && c.chain == chainMasquerade {
				n.plainPorts[f] = true
				err = try(f, c, n.fit(f, rules))
			}
			if err != nil && c.table == tableRaw {
				n.noTrackErr[f], err = err, nil
			}
			if err != nil {
				return nil, fmt.Errorf("nftables does not work here: %s: %w", c.name, err)
			}
		}
	}
	return n, nil
}

// try makes a chain with its rules in a table of its own and takes them away again, in one transaction.
func try(f family, c baseChain, rules []rule) error {
	conn, err := dial()
	if err != nil {
		return err
	}
	t := &nftables.Table{Name: probeTable, Family: kernelFamily(f)}
	conn.AddTable(t)
	addChain(conn, t, f, c, rules)
	conn.DelTable(t)
	return flush(conn)
}

// dial opens a connection that the library uses once for each exchange.
func dial() (*nftables.Conn, error) {
	conn, err := nftables.New(nftables.WithSockOptions(func(c *netlink.Conn) error {
		return c.SetDeadline(time.Now().Add(netlinkLimit))
	}))
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	return conn, nil
}

// flush sends what was put together as one transaction, and returns the first error of many: when one step is refused,
// all that build on it are too.
func flush(conn *nftables.Conn) error {
	err := conn.Flush()
	var number unix.Errno
	if errors.As(err, &number) {
		return fmt.Errorf("nftables transaction: %w", number)
	}
	return err
}

// nftRules picks the rules of a chain, in the words that nftables has: there is nothing to jump from, and our table needs
// no comments to be known as ours.
func nftRules(c baseChain, want []rule) []rule {
	rs := inChain(want, c.table, c.chain)
	for i := range rs {
		rs[i].comment = ""
	}
	return rs
}

// fit leaves out of want what this kernel cannot do and what the rest does not depend on.
func (n *nft) fit(f family, want []rule) []rule {
	var rs []rule
	for _, r := range want {
		if r.verdict == noTrack && n.noTrackErr[f] != nil {
			continue
		}
		if r.verdict == masqueradeRandom && n.plainPorts[f] {
			r.verdict = masquerade
		}
		rs = append(rs, r)
	}
	return rs
}

// apply makes the table of each family hold exactly the wanted rules. A table that differs is replaced as a whole, in one
// transaction, in which no packet sees an empty one.
func (n *nft) apply(_ context.Context, want map[family][]rule, nets []Net) (report, error) {
	var (
		total report
		errs  []error
	)
	for _, f := range families() {
		r, err := applyNFT(f, n.fit(f, want[f]))
		if len(want[f]) == 0 && noNFTables(err) {
			err = nil // nothing to remove either
		}
		if err := n.noTrackErr[f]; err != nil {
			r.notes = append(r.notes, stayTracked(err))
		}
		o := onlooker{family: f, nets: netsOf(f, nets), own: []string{tableName(f)}, outcome: "our chain before it keeps them"}
		r.notes = append(r.notes, o.look(want[f])...)
		total.add(r)
		if err != nil {
			errs = append(errs, fmt.Errorf("nftables %s: %w", tableName(f), err))
		}
	}
	return total, errors.Join(errs...)
}

func (*nft) mode() Mode { return NFTables }

func applyNFT(f family, want []rule) (report, error) {
	t := &nftables.Table{Name: tableName(f), Family: kernelFamily(f)}
	wrong, err := differs(f, t, want)
	if err != nil || wrong == "" {
		return report{}, err
	}
	conn, err := dial()
	if err != nil {
		return report{}, err
	}
	conn.AddTable(t) // so that there is one to take away
	conn.DelTable(t)
	if len(want) > 0 {
		conn.AddTable(t)
	}
	for _, c := range baseChains() {
		if rules := nftRules(c, want); len(rules) > 0 {
			addChain(conn, t, f, c, rules)
		}
	}
	if err := flush(conn); err != nil {
		return report{}, fmt.Errorf("replace: %w", err)
	}
	again, err := differs(f, t, want)
	if err == nil && again != "" {
		err = fmt.Errorf("rules do not read back as they were set: %s", again)
	}
	return report{changes: []string{fmt.Sprintf("table %s: %s", t.Name, wrong)}}, err
}

func addChain(conn *nftables.Conn, t *nftables.Table, f family, c baseChain, rules []rule) {
	policy := nftables.ChainPolicyAccept
	chain := conn.AddChain(&nftables.Chain{
		Name: c.name, Table: t, Type: c.kind, Hooknum: &c.hook, Priority: &c.priority, Policy: &policy,
	})
	for _, r := range rules {
		conn.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: encode(f, r)})
	}
}

// differs says in words in what the kernel's table is not as wanted; nothing if it is.
func differs(f family, t *nftables.Table, want []rule) (string, error) {
	conn, err := dial()
	if err != nil {
		return "", err
	}
	chains, exists, err := chainsOf(conn, t)
	if err != nil {
		return "", err
	}
	for _, c := range baseChains() {
		wanted := nftRules(c, want)
		i := slices.IndexFunc(chains, func(have *nftables.Chain) bool { return have.Name == c.name })
		if i < 0 {
			if len(wanted) > 0 {
				return fmt.Sprintf("%d rules set in %s", len(wanted), c.name), nil
			}
			continue
		}
		have := chains[i]
		chains = slices.Delete(chains, i, i+1)
		if !c.is(have) {
			return c.name + " hooked anew", nil
		}
		kernel, err := conn.GetRules(t, have)
		if err != nil {
			return "", fmt.Errorf("list %s: %w", c.name, err)
		}
		if !slices.Equal(kernelRules(f, c, kernel), wanted) {
			return fmt.Sprintf("%d rules set in %s in place of %d", len(wanted), c.name, len(kernel)), nil
		}
	}
	if len(chains) > 0 || exists && len(want) == 0 {
		return "what was not wanted removed", nil
	}
	return "", nil
}

// is tells whether a chain of the kernel's is called where ours is to be.
func (c baseChain) is(have *nftables.Chain) bool {
	return have.Type == c.kind && have.Hooknum != nil && *have.Hooknum == c.hook &&
		have.Priority != nil && *have.Priority == c.priority && have.Policy != nil && *have.Policy == nftables.ChainPolicyAccept
}

// kernelRules reads rules back; one that does not read as one of ours becomes a zero rule, equal to none.
func kernelRules(f family, c baseChain, kernel []*nftables.Rule) []rule {
	rs := make([]rule, len(kernel))
	for i, k := range kernel {
		if d := decode(f, k.Exprs); d.exact() {
			rs[i] = d.rule
			rs[i].table, rs[i].chain = c.table, c.chain
		}
	}
	return rs
}

// chainsOf lists the chains of a table, and whether the table exists.
func chainsOf(conn *nftables.Conn, t *nftables.Table) ([]*nftables.Chain, bool, error) {
	tables, err := conn.ListTablesOfFamily(t.Family)
	if err != nil {
		return nil, false, fmt.Errorf("list tables: %w", err)
	}
	if !slices.ContainsFunc(tables, func(have *nftables.Table) bool { return have.Name == t.Name }) {
		return nil, false, nil
	}
	all, err := conn.ListChainsOfTableFamily(t.Family)
	if err != nil {
		return nil, true, fmt.Errorf("list chains: %w", err)
	}
	return slices.DeleteFunc(all, func(c *nftables.Chain) bool { return c.Table.Name != t.Name }), true, nil
}

// noNFTables tells whether an error means that the kernel has no nftables, or not for this family.
func noNFTables(err error) bool {
	for _, number := range []error{unix.EOPNOTSUPP, unix.EPROTONOSUPPORT, unix.EAFNOSUPPORT, unix.EINVAL, unix.ENOENT} {
		if errors.Is(err, number) {
			return true
		}
	}
	return false
}

// nftTable tells whether nftables holds a table; iptables-nft keeps its own there under iptables' names.
func nftTable(f family, name string) bool {
	conn, err := dial()
	if err != nil {
		return false
	}
	_, exists, err := chainsOf(conn, &nftables.Table{Name: name, Family: kernelFamily(f)})
	return err == nil && exists
}
