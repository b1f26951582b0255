// Package offload implements segmentation offload for a TUN device with IFF_VNET_HDR: it encodes
// the virtio header that precedes each frame, cuts GSO frames into segments ([Splitter]), and
// merges segments into GSO frames ([Merger]).
//
// A frame is the unit of one read or write on the TUN, without the virtio header: one IPv4 or IPv6
// packet of up to 64 KiB. A GSO frame stands for several equal segments, each of which is one
// packet on the wire.
//
// Out of scope: file descriptors and routing. Nothing here allocates after construction.
package offload
