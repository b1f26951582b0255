package ike

import (
	"strings"
	"time"

	"weft/ctrl"
)

// Status is the state of charon and of all associations.
type Status struct {
	Charon   string // path of the program; empty before it is found
	Version  string // of charon; empty while it does not run
	PID      int
	Since    time.Time // of the start of charon
	Restarts uint64    // of a charon that had started
	Err      error     // why charon does not run or cannot be configured; nil if it is
	Peers    map[ctrl.Association]Peer
}

// Peer is the state of an association.
type Peer struct {
	Established time.Time // zero: there is none
	Encap       bool      // ESP in UDP
	Rekeys      int
	Rekeyed     time.Time // the last; zero: never
	// Err is why there is no association, or why charon could not replace its keys; empty if
	// unknown.
	Err   string
	ErrAt time.Time
	// Refused reports that the other node answered and refused.
	Refused bool
}

// symptom is a message of charon that tells why an association cannot be had.
type symptom struct {
	text    string // part of the message
	reason  string
	refused bool
}

// symptoms lists the messages of charon (strongSwan 5.9, src/libcharon) with what they mean here.
func symptoms() []symptom {
	return []symptom{
		{"received AUTHENTICATION_FAILED notify", "AUTHENTICATION_FAILED: the PSK differs, or the " +
			"other node does not know this one", true},
		{"but MAC mismatched", "AUTHENTICATION_FAILED: the PSK differs", true},
		{"received NO_PROPOSAL_CHOSEN notify", "NO_PROPOSAL_CHOSEN: the ESPProposal differs, or " +
			"charon lacks a plugin for it (openssl)", true},
		{"received TS_UNACCEPTABLE notify", "TS_UNACCEPTABLE: the other node has other subnets " +
			"for the two nodes", true},
		{"no acceptable proposal found", "the ESPProposal differs, or charon lacks a plugin for " +
			"it (openssl)", true},
		{"no acceptable traffic selectors found", "the other node has other subnets for the two " +
			"nodes", true},
		{"peer not responding", "no answer on UDP ports 500 and 4500", false},
		{"giving up after", "no answer on UDP ports 500 and 4500", false},
		{"unable to add SAD entry", "the kernel rejects the keys: it lacks ESP or an algorithm of " +
			"the ESPProposal", false},
		{"unable to install inbound and outbound IPsec SA", "the kernel rejects the keys: it " +
			"lacks ESP or an algorithm of the ESPProposal", false},
		{"configured DH group", "charon lacks a plugin for the ESPProposal (openssl)", false},
	}
}

// explain returns the symptom of a message. ok is false for others.
func explain(message string) (s symptom, ok bool) {
	for _, s := range symptoms() {
		if strings.Contains(message, s.text) {
			return s, true
		}
	}
	return symptom{}, false
}
