package dataplane

import "fmt"

// Drop is a reason for dropping a packet. String returns its name in metrics and logs.
type Drop uint8

// The reasons. Packets that the kernel drops before a worker reads them are counted in
// Stats.SocketOverflows and Stats.TUNOverflows instead.
const (
	dropNone Drop = iota // not dropped

	DropTooShort            // shorter than its own header
	DropBadVersion          // neither IPv4 nor IPv6
	DropBadLength           // the header's length field does not match
	DropTruncated           // longer than the receive buffer; the end is lost
	DropUnknownOuterSource  // inbound: the sender is not a node
	DropSpoofedInnerSource  // inbound: the inner source is leased to another node or local
	DropUnleasedInnerSource // inbound, strict only: the inner source is in no lease
	DropNotForUs            // inbound: the inner destination is not in a local subnet
	DropCongestion          // inbound: congestion marked, but the inner packet is not ECN-capable
	DropBadFrame            // outbound: malformed GSO frame; the number of packets is unknown
	DropNeighbourMessage    // outbound: IPv6 neighbour or router discovery, meaningless on a TUN
	DropMulticast           // outbound: to a multicast group; the overlay is unicast only
	DropNoNode              // outbound: no node has the destination
	DropPacketTooBig        // outbound: exceeds the path MTU and may not be fragmented
	DropNoRoom              // outbound: socket and send queue full, or the socket lost while full
	DropSendError           // outbound: send failed, and not because of a known path MTU
	DropTUNDown             // inbound: the device is administratively down
	DropTUNWriteError       // inbound: write failed, or the device is being recreated
	numDrops
)

var dropNames = [numDrops]string{
	dropNone:                "none",
	DropTooShort:            "too_short",
	DropBadVersion:          "bad_version",
	DropBadLength:           "bad_length",
	DropTruncated:           "truncated",
	DropUnknownOuterSource:  "unknown_outer_source",
	DropSpoofedInnerSource:  "spoofed_inner_source",
	DropUnleasedInnerSource: "unleased_inner_source",
	DropNotForUs:            "not_for_us",
	DropCongestion:          "congestion",
	DropBadFrame:            "bad_frame",
	DropNeighbourMessage:    "neighbour_message",
	DropMulticast:           "multicast",
	DropNoNode:              "no_node",
	DropPacketTooBig:        "packet_too_big",
	DropNoRoom:              "no_room",
	DropSendError:           "send_error",
	DropTUNDown:             "tun_down",
	DropTUNWriteError:       "tun_write_error",
}

// String returns the reason's name: lower case with underscores, and stable.
func (d Drop) String() string {
	if d < numDrops {
		return dropNames[d]
	}
	return fmt.Sprintf("drop_%d", uint8(d))
}

// Meaning explains the reason to an operator: the direction, the condition and, where there is one,
// the usual cause.
func (d Drop) Meaning() string {
	if d < numDrops {
		return dropMeanings[d]
	}
	return ""
}

var dropMeanings = [numDrops]string{
	DropTooShort:   "shorter than its own header; weft doctor of another node sends one",
	DropBadVersion: "neither IPv4 nor IPv6",
	DropBadLength:  "the length in the header does not match",
	DropTruncated:  "from another node, longer than the receive buffer",
	DropUnknownOuterSource: "from an address that is not a node: NAT between nodes, a wrong " +
		"--public-ip or --iface on the sender, or another cluster",
	DropSpoofedInnerSource:  "from another node, with a source leased to a third one",
	DropUnleasedInnerSource: "from another node, with a source in no lease",
	DropNotForUs: "from another node, to an address outside of this node's subnet: the sender " +
		"has an old lease list",
	DropCongestion:       "from another node, congestion marked but not ECN-capable",
	DropBadFrame:         "to another node, a malformed GSO frame of the kernel",
	DropNeighbourMessage: "IPv6 neighbour discovery of the kernel, harmless: a TUN has no neighbours",
	DropMulticast:        "to a multicast group, usually announcements of the kernel: the overlay is unicast only",
	DropNoNode: "no node has the destination: a pod that is gone, a node that left, or a bridge " +
		"with a subnet of another network",
	DropPacketTooBig:  "to another node, larger than the path MTU and must not be fragmented",
	DropNoRoom:        "to another node, socket and send queue were full",
	DropSendError:     "to another node, refused by the kernel; the node's entry has the error",
	DropTUNDown:       "to pods of this node, while the device was down",
	DropTUNWriteError: "to pods of this node, refused by the device",
}

// Drops returns every reason, in the order of the constants.
func Drops() []Drop {
	all := make([]Drop, 0, numDrops-1)
	for d := dropNone + 1; d < numDrops; d++ {
		all = append(all, d)
	}
	return all
}
