// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// The kernel's part of the udp backend. The programs carry packets that need no decision; all
// others pass to the workers, which own every decision, drop and ICMP error. Package fastpath
// describes the paths, the order of a flow's packets and the rules that the programs follow.
//
// The kernel offers bpf_fib_lookup to programs with a GPL-compatible licence only.

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>
#include <stddef.h>

#define SEC(name) __attribute__((section(name), used))
#define inlined static inline __attribute__((always_inline))
#define AF_INET 2
#define AF_INET6 10
#define PACKET_HOST 0
#define IP_DF 0x4000
#define IP_MF 0x2000
#define IP_OFFSET 0x1fff
#define IPPROTO_SCTP_ 132
#define ECN_MASK 3
#define ECN_ECT1 1
#define ECN_CE 3
// ICMPv6 types of neighbour discovery (RFC 4861 section 4).
#define NDP_FIRST 133
#define NDP_LAST 137
// Of Linux 6.3, which headers of older distributions lack.
#define ADJ_ROOM_DECAP_L3_IPV4 (1ull << 7)
#define ADJ_ROOM_DECAP_L3_IPV6 (1ull << 8)

#define __uint(name, val) int(*name)[val]
#define __type(name, val) typeof(val) *name
#define htons(x) __builtin_bswap16(x)
#define ntohs(x) __builtin_bswap16(x)

static void *(*map_lookup)(void *, const void *) = (void *)BPF_FUNC_map_lookup_elem;
static __u64 (*ktime_ns)(void) = (void *)BPF_FUNC_ktime_get_ns;
static long (*load_bytes)(const void *, __u32, void *, __u32) = (void *)BPF_FUNC_skb_load_bytes;
static long (*store_bytes)(void *, __u32, const void *, __u32, __u64) =
	(void *)BPF_FUNC_skb_store_bytes;
static long (*l3_csum_replace)(void *, __u32, __u64, __u64, __u64) =
	(void *)BPF_FUNC_l3_csum_replace;
static long (*csum_diff)(__be32 *, __u32, __be32 *, __u32, __u32) =
	(void *)BPF_FUNC_csum_diff;
static long (*change_head)(void *, __u32, __u64) = (void *)BPF_FUNC_skb_change_head;
static long (*adjust_room)(void *, __s32, __u32, __u64) = (void *)BPF_FUNC_skb_adjust_room;
static long (*change_type)(void *, __u32) = (void *)BPF_FUNC_skb_change_type;
static long (*change_proto)(void *, __be16, __u64) = (void *)BPF_FUNC_skb_change_proto;
static long (*fib_lookup)(void *, struct bpf_fib_lookup *, int, __u32) =
	(void *)BPF_FUNC_fib_lookup;
static long (*redirect)(__u32, __u64) = (void *)BPF_FUNC_redirect;
static long (*redirect_neigh)(__u32, struct bpf_redir_neigh *, int, __u64) =
	(void *)BPF_FUNC_redirect_neigh;
static void (*set_hash_invalid)(void *) = (void *)BPF_FUNC_set_hash_invalid;
static __u32 (*processor_id)(void) = (void *)BPF_FUNC_get_smp_processor_id;
static struct bpf_sock *(*sk_lookup_udp)(void *, struct bpf_sock_tuple *, __u32, __u64, __u64) =
	(void *)BPF_FUNC_sk_lookup_udp;
static long (*sk_release)(void *) = (void *)BPF_FUNC_sk_release;

// Values of settings.source_check, as in package dataplane.
enum { CHECK_KNOWN, CHECK_STRICT, CHECK_OFF };

// Bits of settings.flags.
enum {
	PAUSED = 1, // outbound passes everything
};

// OUTER6 is a bit of settings.flags and of node.flags: the outer address is an IPv6 address. A node
// has one outer address, so the outer headers of all packets that the programs take have its
// family.
#define OUTER6 128

// address is an outer address. IPv4 ones are mapped into IPv6 (RFC 4291 section 2.5.5.2).
struct address {
	__be32 word[4];
};

struct settings {
	struct address local; // outer address of this node
	__u32 device;    // index of the TUN device
	__u32 underlay;  // index of the interface to the other nodes
	__be16 port;     // UDP port of the overlay
	__be16 source;   // UDP port to send from
	__u8 source_check;
	__u8 tos_mask;   // inner TOS bits to copy to the outer header, and ECN bits back
	__u8 flags;
	__u8 link;       // length of the link header before packets of the TUN device: none, but in
	                 // test runs Ethernet's
	__u32 stage;     // index of the near end of the stage that joins packets; 0 if there is none
};

// Bits of node.flags.
enum {
	LOCAL = 1, // a subnet of this node
	FAST = 2,  // the node takes packets of this program
	AVOID = 4, // but they do not arrive: it gets only probes
};

struct node {
	struct address endpoint;
	__u16 flags;
	__u16 mtu; // of the path, for the MTU of a route, which bpf_fib_lookup ignores
};

// IPv4 addresses are mapped into IPv6, and prefix_len counts from there.
struct prefix {
	__u32 prefix_len;
	__be32 addr[4];
};

struct traffic {
	__u64 sent, sent_bytes, received, received_bytes;
};

struct flow {
	__u64 passed; // time of the last packet to the workers
	__u64 since;  // time of the first packet after a silence
	__u64 start;  // of the current window
	__u32 packets; // in the window since the last packet of the other direction
	__u32 bytes;   // in the window
	// Of packets from other nodes:
	__u64 joined;  // time of the last packet that went through the stage
	__u64 arrival; // start of the current window
	__u64 arrived; // bytes in the window
};

// load is the load of a CPU in a window.
struct load {
	__u64 start;
	__u32 packets; // taken
	__u32 flows;   // that had several packets without an answer and are not young
};

// Verdicts that are counted, apart from packets taken; the order is that of Passes in Go.
enum verdict {
	NOT_OURS,    // not counted
	NO_PEER,     // the destination's node takes packets in its workers only
	BULK,        // the flow runs faster in the workers
	PAUSE,       // somebody captures on the device
	NO_ROUTE,    // no route, no neighbour entry yet, or too long for the path
	UNUSUAL,     // a header that the program does not read
	REFUSED,     // inbound: the workers will drop it
	FAILED,      // the kernel had no memory for the headers: dropped
	PROBE,       // a probe of the workers' way
	VERDICTS,
};

// Socket priorities of echoes that probe one of the two ways (package probe in Go).
#define PROBE_WORKERS 0x57454654
#define PROBE_FAST 0x57454655
// DSCP of echoes, and with them of their answers, that the workers are to carry both ways.
#define PROBE_DSCP 0xfc

#define MAX_PREFIXES 65536
#define MAX_NODES 32768
#define FLOWS 16384

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct settings);
} settings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} heartbeat SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, MAX_PREFIXES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix);
	__type(value, struct node);
} nodes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, MAX_NODES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct address);
	__type(value, struct traffic);
} endpoints SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FLOWS);
	__type(key, __u32);
	__type(value, struct flow);
} flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct load);
} load SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, VERDICTS);
	__type(key, __u32);
	__type(value, __u64);
} verdicts SEC(".maps");

// SILENCE is the time in ns after which a flow may return from the workers: longer than a packet
// waits in their queues.
#define SILENCE 100000000ull

// A daemon whose last heartbeat is older than LIFE in ns carries nothing.
#define LIFE 350000000ull

// A flow with more in a window than these packets without an answer, or bytes, belongs to the
// workers, which handle trains. One that waits for answers gains nothing from trains.
#define WINDOW 10000000ull // ns
#define MAX_PACKETS 150
#define MAX_BYTES 262144

// Many flows flood a CPU if it has taken more than FLOOD_PACKETS in a window, and more than
// FLOOD_FLOWS had several packets without an answer. It then gives such flows to the workers, except
// for those that are YOUNG: short connections have few packets each.
#define FLOOD_PACKETS 300
#define FLOOD_FLOWS 8
#define YOUNG 50000000ull // ns

// A TCP flow from another node that brings more bytes than this in a window goes through the stage
// until it is silent, since a packet in the stage must not be overtaken.
#define JOIN_BYTES 65536

// The stage has this many queues for each CPU, as a CPU may poll as many queues of the underlay
// interface in turn, each as often as one queue of the stage.
#define STAGE_QUEUES 2

struct inner {
	struct prefix src, dst;
	__u32 from, to; // hashes of the ends of the flow
	__u32 len;     // of the whole packet, from its header
	__u32 headers; // of its IP and transport headers; 0 if unknown
	__u8 version, tos, proto;
};

inlined int pass(enum verdict v)
{
	__u32 key = v;
	__u64 *n = map_lookup(&verdicts, &key);

	if (n)
		++*n;
	return TC_ACT_UNSPEC;
}

inlined __u32 mix(__u32 h, __u32 v)
{
	h = (h ^ v) * 0x9e3779b1;
	return h ^ h >> 15;
}

// map4 stores an IPv4 address as a prefix of full length.
inlined void map4(struct prefix *p, __be32 addr)
{
	p->prefix_len = 128;
	p->addr[0] = p->addr[1] = 0;
	p->addr[2] = 0xffff0000;
	p->addr[3] = addr;
}

// read_ports adds the ports to the hashes, and the length of the transport header to the headers.
inlined void read_ports(struct __sk_buff *skb, __u32 off, __u8 proto, struct inner *in)
{
	__be16 ports[2];
	__u8 offset = 0;

	if (proto != IPPROTO_TCP && proto != IPPROTO_UDP && proto != IPPROTO_SCTP_)
		return;
	if (load_bytes(skb, off, ports, sizeof(ports)))
		return;
	in->from = mix(in->from, ports[0]);
	in->to = mix(in->to, ports[1]);
	if (proto == IPPROTO_UDP)
		in->headers += 8;
	else if (proto == IPPROTO_TCP && !load_bytes(skb, off + 12, &offset, 1))
		in->headers += (offset >> 4) * 4;
}

// parse4 reads an IPv4 header and the ports behind it.
inlined int parse4(struct __sk_buff *skb, __u32 off, struct inner *in)
{
	struct iphdr h;

	if (load_bytes(skb, off, &h, sizeof(h)) || h.ihl < 5)
		return 0;
	map4(&in->src, h.saddr);
	map4(&in->dst, h.daddr);
	in->len = ntohs(h.tot_len);
	in->tos = h.tos;
	in->headers = h.ihl * 4;
	in->proto = h.protocol;
	in->from = mix(h.protocol, h.saddr);
	in->to = mix(h.protocol, h.daddr);
	if (!(h.frag_off & htons(IP_MF | IP_OFFSET)))
		read_ports(skb, off + in->headers, h.protocol, in);
	return in->len >= h.ihl * 4;
}

// is_mapped reports whether an IPv6 address is an IPv4-mapped one.
inlined int is_mapped(struct prefix *p)
{
	return !p->addr[0] && !p->addr[1] && p->addr[2] == 0xffff0000;
}

// parse6 reads an IPv6 header and the ports behind it. It leaves extension headers and neighbour
// discovery to the workers.
inlined int parse6(struct __sk_buff *skb, __u32 off, struct inner *in)
{
	struct ipv6hdr h;
	__u8 type = 0;

	if (load_bytes(skb, off, &h, sizeof(h)))
		return 0;
	switch (h.nexthdr) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_SCTP_:
		break;
	case IPPROTO_ICMPV6:
		if (load_bytes(skb, off + sizeof(h), &type, 1) ||
		    (type >= NDP_FIRST && type <= NDP_LAST))
			return 0;
		break;
	default:
		return 0;
	}
	in->src.prefix_len = in->dst.prefix_len = 128;
	__builtin_memcpy(in->src.addr, &h.saddr, 16);
	__builtin_memcpy(in->dst.addr, &h.daddr, 16);
	if (is_mapped(&in->src) || is_mapped(&in->dst))
		return 0;
	in->len = ntohs(h.payload_len) + sizeof(h);
	in->tos = h.priority << 4 | h.flow_lbl[0] >> 4;
	in->headers = sizeof(h);
	in->proto = h.nexthdr;
	in->from = mix(mix(h.nexthdr, in->src.addr[2]), in->src.addr[3]);
	in->to = mix(mix(h.nexthdr, in->dst.addr[2]), in->dst.addr[3]);
	read_ports(skb, off + sizeof(h), h.nexthdr, in);
	return 1;
}

// parse reads the packet whose IP header is at offset off, and reports whether it is well-formed
// and of a kind that the programs carry.
inlined int parse(struct __sk_buff *skb, __u32 off, struct inner *in)
{
	__u8 first;

	if (load_bytes(skb, off, &first, 1))
		return 0;
	in->version = first >> 4;
	if (in->version == 4)
		return parse4(skb, off, in);
	return in->version == 6 && parse6(skb, off, in);
}

// flow_of returns the flow of a packet, which is the same in both directions.
inlined struct flow *flow_of(struct inner *in)
{
	__u32 bucket = mix(in->from + in->to, 0) % FLOWS;

	return map_lookup(&flows, &bucket);
}

// is_outer6 reports whether the outer headers are IPv6.
inlined int is_outer6(struct settings *s)
{
	return s->flags & OUTER6;
}

// outer_len returns the length of the outer headers.
inlined __u32 outer_len(struct settings *s)
{
	return (is_outer6(s) ? sizeof(struct ipv6hdr) : sizeof(struct iphdr)) + sizeof(struct udphdr);
}

// equal reports whether two addresses are equal.
inlined int equal(const struct address *a, const struct address *b)
{
	return !((a->word[3] ^ b->word[3]) | (a->word[2] ^ b->word[2]) |
		 (a->word[1] ^ b->word[1]) | (a->word[0] ^ b->word[0]));
}

// find_socket looks for the daemon's socket.
inlined struct bpf_sock *find_socket(struct __sk_buff *skb, struct settings *s,
				     const struct address *from)
{
	struct bpf_sock_tuple t = {};

	if (is_outer6(s)) {
		__builtin_memcpy(t.ipv6.saddr, from, sizeof(*from));
		__builtin_memcpy(t.ipv6.daddr, &s->local, sizeof(s->local));
		t.ipv6.sport = s->source;
		t.ipv6.dport = s->port;
		return sk_lookup_udp(skb, &t, sizeof(t.ipv6), BPF_F_CURRENT_NETNS, 0);
	}
	t.ipv4.saddr = from->word[3];
	t.ipv4.daddr = s->local.word[3];
	t.ipv4.sport = s->source;
	t.ipv4.dport = s->port;
	return sk_lookup_udp(skb, &t, sizeof(t.ipv4), BPF_F_CURRENT_NETNS, 0);
}

// has_socket reports whether the daemon's socket exists. The kernel closes it at once when the
// daemon is killed.
inlined int has_socket(struct __sk_buff *skb, struct settings *s, const struct address *from)
{
	struct bpf_sock *sk = find_socket(skb, s, from);

	if (!sk)
		return 0;
	sk_release(sk);
	return 1;
}

// alive reports whether the daemon runs: one that was stopped has a socket, but no heartbeat. from
// is the address of another node.
inlined int alive(struct __sk_buff *skb, struct settings *s, const struct address *from, __u64 now)
{
	__u32 zero = 0;
	__u64 *last = map_lookup(&heartbeat, &zero);

	return last && now - *last < LIFE && has_socket(skb, s, from);
}

// stamp records that a packet of a flow goes to the workers.
inlined void stamp(struct flow *f, __u64 now)
{
	f->passed = now;
}

// is_flood adds to the load of the CPU, and reports whether the flow is one of many that flood it.
inlined int is_flood(struct flow *f, __u64 now, __u32 packets)
{
	__u32 zero = 0;
	struct load *cpu = map_lookup(&load, &zero);
	int several = f->packets > packets && now - f->since > YOUNG;

	if (!cpu)
		return 0;
	if (now - cpu->start > WINDOW) {
		cpu->start = now;
		cpu->packets = cpu->flows = 0;
	}
	cpu->packets += packets;
	if (several && f->packets <= 2 * packets)
		cpu->flows++;
	return several && cpu->packets > FLOOD_PACKETS && cpu->flows > FLOOD_FLOWS;
}

// is_bulk reports whether a packet of the flow belongs to the workers. The kernel's GSO and GRO
// make trains of TCP packets by themselves.
inlined int is_bulk(struct inner *in, struct flow *f, __u64 now, __u32 packets)
{
	if (now - f->passed < SILENCE)
		return 1;
	if (in->proto == IPPROTO_TCP)
		return 0;
	if (now - f->start > WINDOW) {
		if (now - f->start > SILENCE)
			f->since = now;
		f->start = now;
		f->packets = f->bytes = 0;
	}
	f->packets += packets;
	f->bytes += in->len;
	return is_flood(f, now, packets) || f->packets > MAX_PACKETS ||
	       f->bytes > MAX_BYTES;
}

// new_udp returns the UDP header of a datagram of len bytes. Its checksum is 0 (RFC 768, RFC 6935):
// it tells the other end that the packet is for its inbound program, as the inner checksum may be
// unfinished.
inlined struct udphdr new_udp(struct settings *s, __u32 len)
{
	struct udphdr h = {.source = s->source, .dest = s->port, .len = htons(len)};

	return h;
}

// write_outer4 stores the outer headers at the start of a packet of len bytes.
inlined long write_outer4(struct __sk_buff *skb, struct settings *s, struct node *n, __u8 tos,
			  __u32 len)
{
	struct {
		__u8 link[ETH_HLEN];
		struct iphdr ip;
		struct udphdr udp;
	} __attribute__((packed)) h = {
		.ip = {.version = 4, .ihl = 5, .tos = tos,
		       .tot_len = htons(len), .frag_off = htons(IP_DF), .ttl = 64,
		       .protocol = IPPROTO_UDP, .saddr = s->local.word[3],
		       .daddr = n->endpoint.word[3]},
		.udp = new_udp(s, len - sizeof(struct iphdr)),
	};
	__u32 sum;

	h.link[12] = ETH_P_IP >> 8;
	sum = 0x45 | (__u32)h.ip.tos << 8;
	sum += h.ip.tot_len + h.ip.frag_off;
	sum += 64 | IPPROTO_UDP << 8;
	sum += (h.ip.saddr & 0xffff) + (h.ip.saddr >> 16);
	sum += (h.ip.daddr & 0xffff) + (h.ip.daddr >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	h.ip.check = ~sum;
	return store_bytes(skb, 0, &h, sizeof(h), 0);
}

// write_outer6 is write_outer4 for IPv6.
inlined long write_outer6(struct __sk_buff *skb, struct settings *s, struct node *n, __u8 tos,
			  __u32 len)
{
	struct {
		__u8 link[ETH_HLEN];
		struct ipv6hdr ip;
		struct udphdr udp;
	} __attribute__((packed)) h = {
		.ip = {.version = 6, .priority = tos >> 4, .flow_lbl = {tos << 4},
		       .payload_len = htons(len - sizeof(struct ipv6hdr)),
		       .nexthdr = IPPROTO_UDP, .hop_limit = 64},
		.udp = new_udp(s, len - sizeof(struct ipv6hdr)),
	};

	h.link[12] = ETH_P_IPV6 >> 8;
	h.link[13] = ETH_P_IPV6 & 0xff;
	__builtin_memcpy(&h.ip.saddr, &s->local, sizeof(s->local));
	__builtin_memcpy(&h.ip.daddr, &n->endpoint, sizeof(n->endpoint));
	return store_bytes(skb, 0, &h, sizeof(h), 0);
}

// add_outer adds the outer headers and returns 0.
inlined long add_outer(struct __sk_buff *skb, struct settings *s, struct node *n, struct inner *in)
{
	const __u64 flags = BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_FIXED_GSO;
	const __u32 len = in->len + outer_len(s);
	const __u8 tos = in->tos & s->tos_mask;

	if (is_outer6(s))
		return adjust_room(skb, outer_len(s), BPF_ADJ_ROOM_MAC,
				   flags | BPF_F_ADJ_ROOM_ENCAP_L3_IPV6) ||
		       write_outer6(skb, s, n, tos, len);
	return adjust_room(skb, outer_len(s), BPF_ADJ_ROOM_MAC,
			   flags | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4) ||
	       write_outer4(skb, s, n, tos, len);
}

// encapsulate adds the outer headers and sends the packet to the next hop of a lookup.
inlined int encapsulate(struct __sk_buff *skb, struct settings *s, struct node *n,
			struct inner *in, struct bpf_fib_lookup *hop)
{
	struct bpf_redir_neigh next = {.nh_family = hop->family};

	// The kernel sends from here only what has a link header.
	if (!s->link && change_head(skb, ETH_HLEN, 0))
		return pass(FAILED);
	if (add_outer(skb, s, n, in)) {
		pass(FAILED);
		return TC_ACT_SHOT;
	}
	__builtin_memcpy(next.ipv6_nh, hop->ipv6_dst, 16);
	return redirect_neigh(s->underlay, &next, sizeof(next), 0);
}

// find_hop finds the next hop to a node and reports whether a packet of len bytes fits the path.
inlined int find_hop(struct __sk_buff *skb, struct settings *s, struct node *n, __u32 len,
		     struct bpf_fib_lookup *hop)
{
	hop->l4_protocol = IPPROTO_UDP;
	hop->sport = s->source;
	hop->dport = s->port;
	hop->tot_len = len;
	hop->ifindex = s->underlay;
	if (is_outer6(s)) {
		hop->family = AF_INET6;
		__builtin_memcpy(hop->ipv6_src, &s->local, sizeof(s->local));
		__builtin_memcpy(hop->ipv6_dst, &n->endpoint, sizeof(n->endpoint));
	} else {
		hop->family = AF_INET;
		hop->ipv4_src = s->local.word[3];
		hop->ipv4_dst = n->endpoint.word[3];
	}
	return !fib_lookup(skb, hop, sizeof(*hop), BPF_FIB_LOOKUP_OUTPUT) &&
	       hop->ifindex == s->underlay;
}

// takes reports whether a node is to get the packet from this program.
inlined int takes(struct node *n, struct settings *s, struct __sk_buff *skb)
{
	return (n->flags & FAST) && !((n->flags ^ s->flags) & OUTER6) &&
	       (!(n->flags & AVOID) || skb->priority == PROBE_FAST);
}

// outbound takes packets to nodes whose inbound program takes them. It is attached to the egress of
// the TUN device.
SEC("tc")
int outbound(struct __sk_buff *skb)
{
	__u32 zero = 0, packets = 1, longest, bytes;
	struct settings *s = map_lookup(&settings, &zero);
	struct bpf_fib_lookup hop = {};
	struct inner in = {};
	struct traffic *t;
	struct flow *f;
	struct node *n;
	__u64 now;

	if (!s || !s->device)
		return pass(NOT_OURS);
	if (!parse(skb, s->link, &in) || skb->len != s->link + in.len)
		return pass(UNUSUAL);
	now = ktime_ns();
	f = flow_of(&in);
	if (!f)
		return pass(UNUSUAL);
	n = map_lookup(&nodes, &in.dst);
	if (!n || !takes(n, s, skb)) {
		stamp(f, now);
		return pass(NO_PEER);
	}
	if (s->flags & PAUSED) {
		stamp(f, now);
		return pass(PAUSE);
	}
	if (in.tos >= PROBE_DSCP) {
		stamp(f, now);
		return pass(PROBE);
	}
	if (skb->priority == PROBE_WORKERS)
		return pass(PROBE);
	bytes = longest = in.len;
	if (skb->gso_size) {
		packets = skb->gso_segs;
		longest = skb->gso_size + in.headers;
		bytes += (packets - 1) * in.headers;
	}
	if (is_bulk(&in, f, now, packets) && alive(skb, s, &n->endpoint, now)) {
		stamp(f, now);
		return pass(BULK);
	}
	longest += outer_len(s);
	if (in.len + outer_len(s) > 65535 || longest > n->mtu ||
	    !find_hop(skb, s, n, longest, &hop)) {
		stamp(f, now);
		return pass(NO_ROUTE);
	}
	t = map_lookup(&endpoints, &n->endpoint);
	if (t) {
		t->sent += packets;
		t->sent_bytes += bytes;
	}
	return encapsulate(skb, s, n, &in, &hop);
}

// accepted reports whether the workers would accept the packet from a node with this endpoint.
inlined int accepted(struct settings *s, struct inner *in, const struct address *from)
{
	struct node *n;

	if (s->source_check == CHECK_OFF)
		return 1;
	n = map_lookup(&nodes, &in->src);
	if (n && !equal(&n->endpoint, from)) // :: of a local subnet
		return 0;
	if (!n && s->source_check == CHECK_STRICT)
		return 0;
	n = map_lookup(&nodes, &in->dst);
	return n && (n->flags & LOCAL);
}

// copy_ecn combines the ECN fields of the outer and the inner header in the inner one, at offset
// off, and reports whether the packet may be forwarded (RFC 6040 section 4.2).
inlined int copy_ecn(struct __sk_buff *skb, __u32 off, struct inner *in, __u8 outer)
{
	__u8 ecn = in->tos & ECN_MASK, byte, tos;

	outer &= ECN_MASK;
	if (!ecn)
		return outer != ECN_CE;
	if (ecn == outer || ecn == ECN_CE || (outer != ECN_CE && outer != ECN_ECT1))
		return 1;
	tos = (in->tos & ~ECN_MASK) | outer;
	if (in->version == 4)
		return !l3_csum_replace(skb, off + offsetof(struct iphdr, check), htons(in->tos),
					htons(tos), 2) &&
		       !store_bytes(skb, off + 1, &tos, 1, BPF_F_RECOMPUTE_CSUM);
	if (load_bytes(skb, off + 1, &byte, 1))
		return 0;
	byte = (byte & 0x0f) | tos << 4;
	return !store_bytes(skb, off + 1, &byte, 1, BPF_F_RECOMPUTE_CSUM);
}

// remove_outer removes the outer headers and returns 0. Only Linux 6.3 has flags for headers of two
// families. Before, the kernel can translate: it removes 20 bytes in front of the payload of an
// IPv6 header, or puts them in front of that of an IPv4 header.
inlined long remove_outer(struct __sk_buff *skb, struct settings *s, struct inner *in)
{
	const __s32 wider = sizeof(struct ipv6hdr) - sizeof(struct iphdr), len = outer_len(s);
	const __u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO;
	struct ipv6hdr h;

	if ((in->version == 6) == !!is_outer6(s))
		return adjust_room(skb, -len, BPF_ADJ_ROOM_MAC, flags);
	if (in->version == 4) {
		if (!adjust_room(skb, -len, BPF_ADJ_ROOM_MAC, flags | ADJ_ROOM_DECAP_L3_IPV4))
			return 0;
		if (adjust_room(skb, wider - len, BPF_ADJ_ROOM_MAC, flags))
			return -1;
		return change_proto(skb, htons(ETH_P_IP), 0);
	}
	if (!adjust_room(skb, -len, BPF_ADJ_ROOM_MAC, flags | ADJ_ROOM_DECAP_L3_IPV6))
		return 0;
	if (load_bytes(skb, ETH_HLEN + len, &h, sizeof(h)))
		return -1;
	if (adjust_room(skb, -len - wider, BPF_ADJ_ROOM_MAC, flags))
		return -1;
	if (change_proto(skb, htons(ETH_P_IPV6), 0))
		return -1;
	return store_bytes(skb, ETH_HLEN, &h, sizeof(h), BPF_F_RECOMPUTE_CSUM);
}

// is_joined reports whether a packet goes through the stage, where the kernel joins packets of the
// same flow (GRO), as it does for its own tunnels. One that came as a whole train goes there at
// once: it has the mark of the sender's tunnel, for which a bridge cuts it, and nothing joins the
// pieces again.
inlined int is_joined(struct __sk_buff *skb, struct settings *s, struct inner *in, struct flow *f,
		      __u64 now)
{
	if (!s->stage || !f || in->proto != IPPROTO_TCP)
		return 0;
	if (now - f->joined >= SILENCE && !skb->gso_size) {
		if (now - f->arrival > WINDOW) {
			f->arrival = now;
			f->arrived = 0;
		}
		f->arrived += in->len;
		if (f->arrived <= JOIN_BYTES)
			return 0;
	}
	f->joined = now;
	return 1;
}

// decapsulate removes the outer headers and hands the packet to the TUN device as received, or to
// the stage if join is set.
inlined int decapsulate(struct __sk_buff *skb, struct settings *s, struct inner *in, int join)
{
	__be16 type = in->version == 6 ? htons(ETH_P_IPV6) : htons(ETH_P_IP);

	if (remove_outer(skb, s, in)) {
		pass(FAILED);
		return TC_ACT_SHOT;
	}
	set_hash_invalid(skb); // it is that of the outer headers
	if (!join)
		return redirect(s->device, BPF_F_INGRESS);
	// The far end of the stage reads the type from the link header.
	if ((in->version == 6) != !!is_outer6(s) &&
	    store_bytes(skb, offsetof(struct ethhdr, h_proto), &type, 2, 0)) {
		pass(FAILED);
		return TC_ACT_SHOT;
	}
	// Its queue is of this CPU, so that no other one polls it while this one fills it.
	skb->queue_mapping = 1 + STAGE_QUEUES * processor_id() + skb->queue_mapping % STAGE_QUEUES;
	return redirect(s->stage, 0);
}

// outer is what inbound reads of the outer headers.
struct outer {
	struct address from;
	__u32 len; // of the packet, from its IP header
	__u16 check;
	__u8 tos;
};

// is_intact reports whether the checksum of an IPv4 header without options is right. The kernel
// checks it after the program has run.
inlined int is_intact(struct iphdr *h)
{
	__u32 sum = csum_diff(0, 0, (void *)h, sizeof(*h), 0);

	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum == 0xffff;
}

// is_udp reports whether a UDP header of len bytes with its payload has the port of the overlay.
inlined int is_udp(struct settings *s, struct udphdr *h, __u32 len)
{
	return h->dest == s->port && ntohs(h->len) == len;
}

// is_ours4 reads outer IPv4 headers.
inlined int is_ours4(struct __sk_buff *skb, struct settings *s, struct outer *o)
{
	struct {
		struct iphdr ip;
		struct udphdr udp;
	} h;

	if (skb->protocol != htons(ETH_P_IP) || load_bytes(skb, ETH_HLEN, &h, sizeof(h)))
		return 0;
	o->from.word[2] = 0xffff0000;
	o->from.word[3] = h.ip.saddr;
	o->len = ntohs(h.ip.tot_len);
	o->check = h.udp.check;
	o->tos = h.ip.tos;
	return h.ip.version == 4 && h.ip.ihl == 5 && h.ip.protocol == IPPROTO_UDP &&
	       h.ip.daddr == s->local.word[3] && is_udp(s, &h.udp, o->len - sizeof(h.ip)) &&
	       !(h.ip.frag_off & htons(IP_MF | IP_OFFSET)) && is_intact(&h.ip);
}

// is_ours6 reads outer IPv6 headers. It leaves extension headers to the kernel.
inlined int is_ours6(struct __sk_buff *skb, struct settings *s, struct outer *o)
{
	struct {
		struct ipv6hdr ip;
		struct udphdr udp;
	} h;
	__u32 len;

	if (skb->protocol != htons(ETH_P_IPV6) || load_bytes(skb, ETH_HLEN, &h, sizeof(h)))
		return 0;
	len = ntohs(h.ip.payload_len);
	__builtin_memcpy(&o->from, &h.ip.saddr, sizeof(o->from));
	o->len = len + sizeof(h.ip);
	o->check = h.udp.check;
	o->tos = h.ip.priority << 4 | h.ip.flow_lbl[0] >> 4;
	return h.ip.version == 6 && h.ip.nexthdr == IPPROTO_UDP &&
	       equal((void *)&h.ip.daddr, &s->local) && is_udp(s, &h.udp, len);
}

// is_ours reports whether a packet has the outer headers of the overlay.
inlined int is_ours(struct __sk_buff *skb, struct settings *s, struct outer *o)
{
	return (is_outer6(s) ? is_ours6(skb, s, o) : is_ours4(skb, s, o)) &&
	       skb->len == ETH_HLEN + o->len;
}

// inbound takes packets of other nodes' outbound programs, and those of their workers while this
// node has no daemon. It is attached to the ingress of the underlay interface.
SEC("tc")
int inbound(struct __sk_buff *skb)
{
	__u32 zero = 0, packets = 1, bytes, off;
	struct settings *s = map_lookup(&settings, &zero);
	struct inner in = {};
	struct traffic *t;
	struct outer o = {};
	struct flow *f;
	__u64 now;

	if (!s || !s->device || !is_ours(skb, s, &o))
		return TC_ACT_UNSPEC;
	off = ETH_HLEN + outer_len(s);
	if (!parse(skb, off, &in))
		return pass(UNUSUAL);
	f = flow_of(&in);
	if (f)
		f->packets = 0;
	now = ktime_ns();
	if (o.check && alive(skb, s, &o.from, now))
		return TC_ACT_UNSPEC;
	// A train of datagrams is longer than its first one.
	if (in.len + outer_len(s) != o.len)
		return pass(UNUSUAL);
	t = map_lookup(&endpoints, &o.from);
	if ((!t && s->source_check != CHECK_OFF) || !accepted(s, &in, &o.from))
		return pass(REFUSED);
	if ((s->tos_mask & ECN_MASK) && !copy_ecn(skb, off, &in, o.tos))
		return pass(REFUSED);
	bytes = in.len;
	if (skb->gso_size) {
		packets = skb->gso_segs;
		bytes += (packets - 1) * in.headers;
	}
	if (t) {
		t->received += packets;
		t->received_bytes += bytes;
	}
	return decapsulate(skb, s, &in, is_joined(skb, s, &in, f, now));
}

// joined hands the packets that the stage has joined to the TUN device as received. It is attached
// to the ingress of the stage's far end.
SEC("tc")
int joined(struct __sk_buff *skb)
{
	__u32 zero = 0;
	struct settings *s = map_lookup(&settings, &zero);

	if (!s || !s->device)
		return TC_ACT_SHOT;
	change_type(skb, PACKET_HOST); // the link address is that of the underlay interface
	return redirect(s->device, BPF_F_INGRESS);
}

char programs_license[] SEC("license") = "Dual BSD/GPL";
