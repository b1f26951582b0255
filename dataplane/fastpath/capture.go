package fastpath

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// captured reports whether a program captures all packets of the interface, in the calling thread's
// network namespace. Packets that outbound takes do not reach packet sockets of the TUN device.
func captured(index int) (bool, error) {
	table, err := os.ReadFile("/proc/thread-self/net/packet")
	if err != nil {
		return false, fmt.Errorf("list packet sockets: %w", err)
	}
	return capturedIn(string(table), index), nil
}

// Columns of /proc/net/packet (net/packet/af_packet.c, packet_seq_show).
const (
	columnProto = 3 // hexadecimal
	columnIface = 4 // 0 for all interfaces
	packetCols  = 9
)

// ethPAll is the protocol of sockets that receive every packet (linux/if_ether.h, ETH_P_ALL); only
// those see packets that are sent.
const ethPAll = "0003"

// capturedIn reads a table in the format of /proc/net/packet.
func capturedIn(table string, index int) bool {
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		if len(f) < packetCols || f[columnProto] != ethPAll {
			continue
		}
		if on := f[columnIface]; on == "0" || on == strconv.Itoa(index) {
			return true
		}
	}
	return false
}
