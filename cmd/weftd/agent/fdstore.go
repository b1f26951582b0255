package agent

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"

	"weft/dataplane"
)

// fdStore keeps the engine's descriptors in systemd's file descriptor store while no fast path
// carries packets without a daemon, so that packets which arrive during a restart wait for the next
// process. See FileDescriptorStoreMax= in systemd.service(5).
type fdStore struct {
	log        *slog.Logger
	socket     string // of systemd; "" without
	inherited  dataplane.Descriptors
	names      []string // stored
	generation uint64   // of the engine's descriptors that are stored
}

// Names of stored descriptors begin with these.
const (
	queueFDName  = "weft-queue-"
	socketFDName = "weft-socket-"
)

// newFDStore takes the descriptors that systemd passed to this process.
func newFDStore(log *slog.Logger) *fdStore {
	s := &fdStore{log: log, socket: os.Getenv("NOTIFY_SOCKET")}
	byName := activation.FilesWithNames()
	var err error
	s.inherited.Queues, err = takeFDs(byName, queueFDName)
	var socketErr error
	s.inherited.Sockets, socketErr = takeFDs(byName, socketFDName)
	for name, files := range byName {
		if strings.HasPrefix(name, queueFDName) || strings.HasPrefix(name, socketFDName) {
			s.names = append(s.names, name)
		}
		for _, f := range files {
			err = errors.Join(err, f.Close())
		}
	}
	if err = errors.Join(err, socketErr); err != nil {
		log.Warn("cannot take a descriptor from systemd", "err", err)
	}
	return s
}

// takeFDs returns duplicates of the files named prefix0, prefix1 and so on. The originals are known
// to the runtime's poller, which would wake a thread for each packet until they are closed.
func takeFDs(byName map[string][]*os.File, prefix string) ([]int, error) {
	var fds []int
	for {
		files := byName[fmt.Sprint(prefix, len(fds))]
		if len(files) == 0 {
			return fds, nil
		}
		conn, err := files[0].SyscallConn()
		if err != nil {
			return fds, err
		}
		fd, dupErr := 0, error(nil)
		err = conn.Control(func(f uintptr) {
			fd, dupErr = unix.FcntlInt(f, unix.F_DUPFD_CLOEXEC, 0)
		})
		if err = errors.Join(err, dupErr); err != nil {
			return fds, err
		}
		fds = append(fds, fd)
	}
}

// take returns the inherited descriptors, once.
func (s *fdStore) take() dataplane.Descriptors {
	d := s.inherited
	s.inherited = dataplane.Descriptors{}
	return d
}

// sync stores the engine's descriptors, or removes them while the kernel carries packets without a
// daemon: it could not tell sockets in the store from those of a running one.
func (s *fdStore) sync(e *dataplane.Engine) {
	if s.socket == "" {
		return
	}
	generation := e.Generation()
	if e.FastPath().Active {
		generation = 0
	}
	if generation == s.generation {
		return
	}
	err := s.removeAll()
	if generation != 0 {
		err = errors.Join(err, e.ShareDescriptors(s.store))
	}
	if err != nil {
		s.log.Warn("cannot store descriptors: packets that arrive during a restart are lost",
			"err", err)
	}
	s.generation = generation
}

// discard closes the inherited descriptors and removes all from the store. When it returns, systemd
// has closed its own.
func (s *fdStore) discard() {
	if len(s.names) == 0 {
		return
	}
	err := errors.Join(s.take().Close(), s.removeAll(), s.barrier())
	s.generation = 0
	if err != nil {
		s.log.Warn("cannot remove stored descriptors", "err", err)
	}
}

// barrierTimeout bounds the time that barrier waits. systemd answers in milliseconds.
const barrierTimeout = 5 * time.Second

// barrier waits until systemd has handled all notifications: it closes the pipe that comes with
// this one (sd_notify_barrier(3)).
func (s *fdStore) barrier() error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	err = errors.Join(s.notify("BARRIER=1", int(w.Fd())), w.Close(),
		r.SetReadDeadline(time.Now().Add(barrierTimeout)))
	if err != nil {
		return err
	}
	if _, err = r.Read(make([]byte, 1)); err != io.EOF {
		return fmt.Errorf("systemd has not handled the notifications: %w", err)
	}
	return nil
}

// removeAll removes all stored descriptors.
func (s *fdStore) removeAll() error {
	var errs []error
	for _, name := range s.names {
		errs = append(errs, s.notify("FDSTOREREMOVE=1\nFDNAME="+name))
	}
	s.names = nil
	return errors.Join(errs...)
}

func (s *fdStore) store(d dataplane.Descriptors) error {
	for i, fd := range d.Queues {
		if err := s.add(fmt.Sprint(queueFDName, i), fd); err != nil {
			return err
		}
	}
	for i, fd := range d.Sockets {
		if err := s.add(fmt.Sprint(socketFDName, i), fd); err != nil {
			return err
		}
	}
	return nil
}

// add stores one descriptor. By default systemd drops descriptors that poll with an error, which a
// socket does after each ICMP error.
func (s *fdStore) add(name string, fd int) error {
	err := s.notify("FDSTORE=1\nFDPOLL=0\nFDNAME="+name, fd)
	if err == nil {
		s.names = append(s.names, name)
	}
	return err
}

// notify sends a state with descriptors to systemd (sd_pid_notify_with_fds(3)), which the systemd
// library cannot.
func (s *fdStore) notify(state string, fds ...int) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket to systemd: %w", err)
	}
	defer unix.Close(fd)
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	err = unix.Sendmsg(fd, []byte(state), rights, &unix.SockaddrUnix{Name: s.socket}, 0)
	if err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	return nil
}
