// Package ike negotiates the keys of the ipsec backend: it runs strongSwan's charon as a child
// process and keeps a security association with each other node.
//
// A [Manager] compares the wanted associations with those that charon lists, after each event of
// charon and every few seconds, and starts the missing ones. It restarts a charon that ends and
// loads everything again. The policies that send packets into the associations are not charon's
// but part of the wanted kernel state (ctrl.Policy), so packets are never sent in clear text while
// there is no charon.
//
// charon is killed when the daemon ends, not stopped: its security associations stay in the kernel
// and carry packets until the next daemon has new ones.
package ike
