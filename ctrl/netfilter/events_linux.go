package netfilter

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// watch implements host. The kernel reports changes of nftables, which include those that
// iptables-nft makes. There are no reports of changes in legacy iptables.
func (realHost) watch(ctx context.Context, changed func()) error {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("watch nftables: %w", err)
	}
	defer conn.Close()
	if err := conn.JoinGroup(unix.NFNLGRP_NFTABLES); err != nil {
		return fmt.Errorf("watch nftables: %w", err)
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	for {
		messages, err := conn.Receive()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, unix.ENOBUFS): // reports were lost
			changed()
		case err != nil:
			return fmt.Errorf("watch nftables: %w", err)
		case slices.ContainsFunc(messages, concernsRules):
			changed()
		}
	}
}

// concernsRules reports whether a message is about a chain that can hold managed rules or about the
// policy of a base chain. Other programs change their own chains all the time.
func concernsRules(m netlink.Message) bool {
	const genericHeader = 4 // struct nfgenmsg
	if uint16(m.Header.Type)>>8 != unix.NFNL_SUBSYS_NFTABLES || len(m.Data) < genericHeader {
		return false
	}
	ad, err := netlink.NewAttributeDecoder(m.Data[genericHeader:])
	if err != nil {
		return false
	}
	ad.ByteOrder = binary.BigEndian
	var table, chain string
	isBase := false
	kind := uint16(m.Header.Type) & 0xff
	for ad.Next() {
		switch {
		case ad.Type() == unix.NFTA_RULE_TABLE: // the same number for chains and tables
			table = ad.String()
		case isRule(kind) && ad.Type() == unix.NFTA_RULE_CHAIN,
			isChain(kind) && ad.Type() == unix.NFTA_CHAIN_NAME:
			chain = ad.String()
		case isChain(kind) && ad.Type() == unix.NFTA_CHAIN_HOOK:
			isBase = true
		}
	}
	switch {
	case ad.Err() != nil:
		return false
	case table == tableName(ipv4) || table == tableName(ipv6):
		return true
	case isRule(kind) || isChain(kind):
		return isBase || slices.ContainsFunc(layouts(), func(l layout) bool {
			return l.table == table &&
				(slices.Contains(l.hooks, chain) || slices.Contains(l.ownChains, chain))
		})
	}
	return kind == unix.NFT_MSG_DELTABLE
}

func isRule(kind uint16) bool {
	return kind == unix.NFT_MSG_NEWRULE || kind == unix.NFT_MSG_DELRULE
}

func isChain(kind uint16) bool {
	return kind == unix.NFT_MSG_NEWCHAIN || kind == unix.NFT_MSG_DELCHAIN
}
