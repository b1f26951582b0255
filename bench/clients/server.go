package clients

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"weft/bench"
	"weft/lease/etcd/testetcd"
)

// Serve runs an etcd until the process is told to end. args are the data directory, the address of
// clients and the number of leases of nodes without a client.
func Serve(args []string) error {
	if len(args) != 3 {
		return fmt.Errorf("got %d arguments, want a directory, an address and a number", len(args))
	}
	listen, err := netip.ParseAddrPort(args[1])
	if err != nil {
		return err
	}
	leases, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	s, err := testetcd.Start(testetcd.Config{Dir: args[0], Listen: listen})
	if err != nil {
		return err
	}
	defer s.Close()
	if err := fill(s, leases); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// maxOps is below etcd's limit of operations per transaction.
const maxOps = 100

// fill writes the config and the leases of nodes without a client, from the upper half of the
// network.
func fill(s *testetcd.Server, leases int) error {
	put := map[string]string{}
	for i := range leases {
		put[fmt.Sprintf("%s/subnets/10.%d.%d.0-24", prefix, 128+i>>8, byte(i))] =
			fmt.Sprintf(`{"PublicIP":"172.29.%d.%d","PublicIPv6":null}`, i>>8, byte(i))
		if len(put) == maxOps || i == leases-1 {
			if err := s.Change(put, nil); err != nil {
				return err
			}
			clear(put)
		}
	}
	return s.Put(prefix+"/config", config)
}

// server is an etcd in a process of its own.
type server struct {
	argv   []string // of a process that calls Serve with the rest of its arguments
	dir    string
	listen netip.AddrPort
	leases int
	cmd    *exec.Cmd
}

// start starts the process and waits until etcd answers.
func (s *server) start(ctx context.Context) error {
	argv := slices.Concat(s.argv, []string{s.dir, s.listen.String(), fmt.Sprint(s.leases)})
	s.cmd = exec.Command(argv[0], argv[1:]...)
	s.cmd.Stderr = os.Stderr
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		return fmt.Errorf("start etcd: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		_, err := bench.Get(ctx, s.listen, "/health")
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return errors.Join(fmt.Errorf("start etcd on %s: %w", s.listen, err), s.kill())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// kill ends the process as a crash does. The data survives.
func (s *server) kill() error {
	if err := s.cmd.Process.Kill(); err != nil {
		return fmt.Errorf("kill etcd: %w", err)
	}
	_ = s.cmd.Wait() // reports the signal
	return nil
}

// usage is the work of the server since its start.
type usage struct {
	requests  float64            // from clients, in calls and streams
	byMethod  map[string]float64 // of requests
	responses float64            // to clients, in calls and streams
	in, out   float64            // bytes of gRPC messages
	cpu       time.Duration
	rss       float64 // bytes
}

// usage reads the server's own metrics.
func (s *server) usage(ctx context.Context) (usage, error) {
	m, err := bench.Scrape(ctx, s.listen)
	if err != nil {
		return usage{}, err
	}
	return usage{
		requests:  m.Sum("grpc_server_msg_received_total"),
		byMethod:  methods(m),
		responses: m.Sum("grpc_server_msg_sent_total"),
		in:        m.Sum("etcd_network_client_grpc_received_bytes_total"),
		out:       m.Sum("etcd_network_client_grpc_sent_bytes_total"),
		cpu:       time.Duration(m["process_cpu_seconds_total"] * float64(time.Second)),
		rss:       m["process_resident_memory_bytes"],
	}, nil
}

// methods returns the requests by the name of their method.
func methods(m bench.Metrics) map[string]float64 {
	const name = "grpc_server_msg_received_total{"
	byMethod := map[string]float64{}
	for sample, v := range m {
		labels, ok := strings.CutPrefix(sample, name)
		if !ok || v == 0 {
			continue
		}
		_, method, _ := strings.Cut(labels, `grpc_method="`)
		method, _, _ = strings.Cut(method, `"`)
		byMethod[method] += v
	}
	return byMethod
}

// since returns the work since before. Memory is that of now.
func (u usage) since(before usage) usage {
	d := usage{
		requests: u.requests - before.requests, responses: u.responses - before.responses,
		in: u.in - before.in, out: u.out - before.out,
		cpu: u.cpu - before.cpu, rss: u.rss, byMethod: map[string]float64{},
	}
	for method, n := range u.byMethod {
		if n -= before.byMethod[method]; n > 0 {
			d.byMethod[method] = n
		}
	}
	return d
}
