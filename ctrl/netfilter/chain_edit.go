package netfilter

import (
	"fmt"
	"slices"
)

// kernelRule is a rule read from the kernel. exact reports whether rule describes it completely.
type kernelRule struct {
	rule
	exact bool
}

// chainEdit is a set of changes to a chain that several daemons share. The zero value changes
// nothing.
type chainEdit struct {
	deletes     []int  // indexes of rules to delete, before any other change
	inserts     []rule // rules to insert at the head of the chain, in this order
	appends     []rule // rules to append to the chain
	deleteChain bool   // the chain is empty after the edit and is deleted
}

func (e chainEdit) isEmpty() bool {
	return !e.deleteChain && len(e.deletes)+len(e.inserts)+len(e.appends) == 0
}

// edit compares a shared chain with the rules wanted in it and returns the difference.
//
// Rules of different daemons may stand in any order, since a rule matches only its own network's
// traffic. Only the rule that names no network must precede them all. That rule counts as in place
// if it equals the wanted one, and stays while other daemons need it, even if want is empty.
func (s ruleset) edit(want []rule, have []kernelRule) chainEdit {
	var e chainEdit
	shared := slices.ContainsFunc(have, func(k kernelRule) bool { return s.otherDaemon(k.rule) })
	inPlace := len(want) > 0
	var own []rule
	for i, k := range have {
		if s.otherDaemon(k.rule) || len(want) == 0 && shared && len(k.networks()) == 0 {
			continue
		}
		e.deletes, own = append(e.deletes, i), append(own, k.rule)
		inPlace = inPlace && k.exact
	}
	if inPlace && slices.Equal(own, want) {
		return chainEdit{}
	}
	for _, r := range want {
		if len(r.networks()) == 0 {
			e.inserts = append(e.inserts, r)
		} else {
			e.appends = append(e.appends, r)
		}
	}
	e.deleteChain = len(want) == 0 && !shared
	return e
}

// summary describes the edit for the log.
func (e chainEdit) summary() string {
	switch set := len(e.inserts) + len(e.appends); {
	case e.deleteChain:
		return "removed"
	case set > 0:
		return fmt.Sprintf("%d rules set", set)
	}
	return fmt.Sprintf("%d rules removed", len(e.deletes))
}
