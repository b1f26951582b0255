package dataplane

import "fmt"

// Drop is a reason for which a packet dies in the dataplane. String is its name in metrics and logs.
type Drop uint8

// Every reason. What the kernel drops before we see it is counted apart: Stats.SocketOverflows, TUNOverflows.
const (
	dropNone Drop = iota // not dropped

	DropTooShort            // a packet shorter than its own header
	DropBadVersion          // neither IPv4 nor IPv6
	DropBadLength           // the header's length field does not match
	DropTruncated           // longer than any receive buffer; its end is lost
	DropUnknownOuterSource  // inbound: the sender is no node of ours
	DropSpoofedInnerSource  // inbound: the inner source is leased to another node, or to us
	DropUnleasedInnerSource // inbound, strict only: the inner source is in no lease
	DropNotForUs            // inbound: the inner destination is not in our subnet
	DropCongestion          // inbound: marked as met by congestion, and the sender would not understand the mark
	DropBadFrame            // outbound: a super-frame that its header does not describe; how many packets it was nobody knows
	DropNeighbourMessage    // outbound: IPv6 neighbour or router discovery, of which a TUN has none
	DropMulticast           // outbound: to a group; the overlay joins single hosts
	DropNoNode              // outbound: no node has the destination
	DropPacketTooBig        // outbound: longer than the path carries and not to be cut
	DropNoRoom              // outbound: the socket was full, and so was the memory before it; or it was lost while full
	DropSendError           // outbound: the kernel refused to send it, and not for a path MTU that it knows
	DropTUNDown             // inbound: the device is administratively down
	DropTUNWriteError       // inbound: the kernel refused to take it, or the device is just being made again
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

// Drops returns every reason, in the order of the constants.
func Drops() []Drop {
	all := make([]Drop, 0, numDrops-1)
	for d := dropNone + 1; d < numDrops; d++ {
		all = append(all, d)
	}
	return all
}
