package netfilter

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
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
func openNFT(want map[family]goal) (applier, error) {
	n := &nft{plainPorts: map[family]bool{}, noTrackErr: map[family]error{}}
	for _, f := range families() {
		for _, c := range baseChains() {
			rules := nftRules(c, want[f].rules)
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
	chain := addChain(conn, t, c)
	for _, r := range rules {
		conn.AddRule(kernelForm(f, t, chain, r))
	}
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

// nftRules picks the rules of a chain, in the words that nftables has: there is nothing to jump from, and in our table only
// a comment that tells whose a rule is serves a purpose.
func nftRules(c baseChain, want []rule) []rule {
	rs := inChain(want, c.table, c.chain)
	for i := range rs {
		if rs[i].verdict != noTrack {
			rs[i].comment = ""
		}
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

// apply makes the table of each family hold exactly the wanted rules among ours. What differs is set right in one
// transaction, so that no packet sees half of it.
func (n *nft) apply(_ context.Context, want map[family]goal) (report, error) {
	var (
		total report
		errs  []error
	)
	for _, f := range families() {
		g := want[f]
		g.rules = n.fit(f, g.rules)
		r, err := applyNFT(f, g)
		if len(g.rules) == 0 && noNFTables(err) {
			err = nil // nothing to remove either
		}
		if err := n.noTrackErr[f]; err != nil {
			r.notes = append(r.notes, stayTracked(err))
		}
		o := onlooker{family: f, nets: g.nets, own: []string{tableName(f)}, outcome: "our chain before it keeps them"}
		r.notes = append(r.notes, o.look(want[f].rules)...)
		total.add(r)
		if err != nil {
			errs = append(errs, fmt.Errorf("nftables %s: %w", tableName(f), err))
		}
	}
	return total, errors.Join(errs...)
}

func (*nft) mode() Mode { return NFTables }

// applyNFT does apply for one family. Another daemon may change the table between our look and our change, hence the
// attempts.
func applyNFT(f family, g goal) (report, error) {
	var (
		done    report
		lastErr error
	)
	for range attempts {
		conn, err := dial()
		if err != nil {
			return done, err
		}
		wrong, err := queueRepair(conn, f, g)
		if err != nil || len(wrong) == 0 {
			return done, err
		}
		if lastErr = flush(conn); lastErr == nil {
			done.changes = append(done.changes, wrong...)
			lastErr = fmt.Errorf("rules do not read back as they were set: %s", strings.Join(wrong, ", "))
		}
	}
	return done, lastErr
}

// queueRepair puts into conn's next transaction what makes our table as wanted, and says it in words; nothing if it is.
// A sibling's rules stay, and so does the table while it has any.
func queueRepair(conn *nftables.Conn, f family, g goal) (wrong []string, err error) {
	t := &nftables.Table{Name: tableName(f), Family: kernelFamily(f)}
	chains, exists, err := chainsOf(conn, t)
	if err != nil {
		return nil, err
	}
	if !exists && len(g.rules) > 0 {
		conn.AddTable(t)
	}
	stay := len(g.rules) > 0
	for _, c := range sharedChains(t, chains) {
		if c.kernel == nil && len(nftRules(c.baseChain, g.rules)) == 0 {
			continue
		}
		m, err := c.queue(conn, f, g)
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", c.name, err)
		}
		stay = stay || !m.void
		if !m.nothing() {
			wrong = append(wrong, fmt.Sprintf("table %s %s: %s", t.Name, c.name, m.words()))
		}
	}
	if exists && !stay {
		conn.DelTable(t)
		wrong = append(wrong, fmt.Sprintf("table %s: removed", t.Name))
	}
	return wrong, nil
}

// sharedChain is a chain of our table, which a sibling may have rules in as well.
type sharedChain struct {
	baseChain
	table  *nftables.Table
	kernel *nftables.Chain // nil: it does not exist
}

// sharedChains are those that may be wanted, and then whatever else a table holds.
func sharedChains(t *nftables.Table, have []*nftables.Chain) []sharedChain {
	var all []sharedChain
	for _, c := range baseChains() {
		s := sharedChain{baseChain: c, table: t}
		if i := slices.IndexFunc(have, func(k *nftables.Chain) bool { return k.Name == c.name }); i >= 0 {
			s.kernel = have[i]
			have = slices.Delete(have, i, i+1)
		}
		all = append(all, s)
	}
	for _, k := range have {
		all = append(all, sharedChain{baseChain{name: k.Name}, t, k})
	}
	return all
}

// queue does queueRepair for one chain, and returns what it comes to.
func (c sharedChain) queue(conn *nftables.Conn, f family, g goal) (mend, error) {
	want := nftRules(c.baseChain, g.rules)
	var kernel []*nftables.Rule
	if c.kernel != nil {
		var err error
		if kernel, err = conn.GetRules(c.table, c.kernel); err != nil {
			return mend{}, err
		}
	}
	chain := c.kernel
	if len(want) > 0 && (chain == nil || !c.is(chain)) {
		kernel = slices.DeleteFunc(kernel, func(k *nftables.Rule) bool { return !g.sibling(kernelRule(f, c.baseChain, k).rule) })
		chain = c.anew(conn, kernel)
	}
	have := make([]found, len(kernel))
	for i, k := range kernel {
		have[i] = kernelRule(f, c.baseChain, k)
	}
	m := g.mend(want, have)
	for _, i := range m.drop {
		if err := conn.DelRule(&nftables.Rule{Table: c.table, Chain: chain, Handle: kernel[i].Handle}); err != nil {
			return m, err
		}
	}
	for _, r := range slices.Backward(m.front) {
		conn.InsertRule(kernelForm(f, c.table, chain, r))
	}
	for _, r := range m.back {
		conn.AddRule(kernelForm(f, c.table, chain, r))
	}
	if m.void {
		conn.DelChain(chain)
	}
	return m, nil
}

// anew makes a chain, in place of one that is called elsewhere than it should be, and puts back what is to stay.
func (c sharedChain) anew(conn *nftables.Conn, stay []*nftables.Rule) *nftables.Chain {
	if c.kernel != nil {
		conn.FlushChain(c.kernel)
		conn.DelChain(c.kernel)
	}
	chain := addChain(conn, c.table, c.baseChain)
	for _, k := range stay {
		conn.AddRule(&nftables.Rule{Table: c.table, Chain: chain, Exprs: k.Exprs, UserData: k.UserData})
	}
	return chain
}

func addChain(conn *nftables.Conn, t *nftables.Table, c baseChain) *nftables.Chain {
	policy := nftables.ChainPolicyAccept
	return conn.AddChain(&nftables.Chain{
		Name: c.name, Table: t, Type: c.kind, Hooknum: &c.hook, Priority: &c.priority, Policy: &policy,
	})
}

// is tells whether a chain of the kernel's is called where ours is to be.
func (c baseChain) is(have *nftables.Chain) bool {
	return have.Type == c.kind && have.Hooknum != nil && *have.Hooknum == c.hook &&
		have.Priority != nil && *have.Priority == c.priority && have.Policy != nil && *have.Policy == nftables.ChainPolicyAccept
}

// kernelForm is a rule as the kernel takes it.
func kernelForm(f family, t *nftables.Table, c *nftables.Chain, r rule) *nftables.Rule {
	k := &nftables.Rule{Table: t, Chain: c, Exprs: encode(f, r)}
	if r.comment != "" {
		k.UserData = userdata.AppendString(nil, userdata.TypeComment, r.comment)
	}
	return k
}

// kernelRule is the reverse of kernelForm, for rules of anybody's.
func kernelRule(f family, c baseChain, k *nftables.Rule) found {
	d := decode(f, k.Exprs)
	d.table, d.chain = c.table, c.chain
	if comment, ok := userdata.GetString(k.UserData, userdata.TypeComment); ok && d.verdict == noTrack {
		d.comment = comment
	}
	return found{d.rule, d.exact()}
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
