package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"weft/cmd/control"
	"weft/dataplane/capture"
)

// captureOptions are the flags of weft capture.
type captureOptions struct {
	asking
	control.Capture
	point    string
	file     string
	buffer   int // in MB; 0 means the daemon's default
	fileSize int // in MB; 0 means any
	files    int // that are kept; 0 means all
	duration time.Duration
}

const captureHelp = `
Prints the packets of the overlay on this node, or writes them as pcapng with the
node, the worker and the fate of each packet in its comment. FILTER is in the
language of tcpdump, and sees IP packets without a link layer. Inner packets are
those of pods; outer packets are the datagrams between nodes, with headers that are
rebuilt. A packet that could not be sent is shown twice, the second time with the
reason.

With backends other than udp, the packets are those of the backend's device.

    weft capture host 10.244.1.7 and tcp port 80
    weft capture --drops
    weft capture -w - | wireshark -k -i -
    weft capture -w ring.pcapng -C 100 -W 5`

// newCapture returns weft capture.
func newCapture() *cobra.Command {
	var o captureOptions
	cmd := &cobra.Command{
		Use:   "capture [FILTER]",
		Short: "print or record packets of the overlay, with the reasons for drops",
		Long:  strings.TrimSpace(captureHelp),
		Args:  cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Filter = strings.Join(args, " ")
			if err := o.check(); err != nil {
				return usageError{cmd, err}
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			if o.duration > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, o.duration)
				defer cancel()
			}
			return o.run(ctx, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	o.register(cmd)
	f := cmd.Flags()
	f.StringVarP(&o.point, "interface", "i", "inner", "packets to show: inner, outer or any")
	f.StringVarP(&o.file, "write", "w", "", "write pcapng to a `file`; - is the standard output")
	f.IntVarP(&o.Count, "count", "c", 0, "end after so many packets")
	f.IntVarP(&o.SnapLen, "snapshot-length", "s", 0, "record so many bytes per packet; 0 means all")
	f.IntVarP(&o.buffer, "buffer-size", "B", 0,
		"`MB` in which packets wait for the reader, at most 1024; 0 means 8")
	f.IntVarP(&o.fileSize, "file-size", "C", 0, "begin a new file after so many `MB`")
	f.IntVarP(&o.files, "file-count", "W", 0, "keep so many files, with -C; 0 means all")
	f.DurationVar(&o.duration, "duration", 0, "end after this time")
	f.BoolVar(&o.DropsOnly, "drops", false, "only packets that weftd dropped")
	f.StringVar(&o.Node, "node", "", "only packets to and from this node")
	return cmd
}

// check checks the flags and completes the request.
func (o *captureOptions) check() error {
	switch o.point {
	case "inner":
		o.Inner = true
	case "outer":
		o.Outer = true
	case "any":
		o.Inner, o.Outer = true, true
	default:
		return fmt.Errorf("invalid --interface %q: want inner, outer or any", o.point)
	}
	switch {
	case o.buffer < 0 || o.buffer > capture.MaxMemory>>20:
		return fmt.Errorf("invalid --buffer-size %d: want at most %d", o.buffer, capture.MaxMemory>>20)
	case o.Count < 0 || o.SnapLen < 0 || o.fileSize < 0 || o.files < 0 || o.duration < 0:
		return errors.New("numbers must not be negative")
	case o.SnapLen > capture.MaxSnapLen:
		return fmt.Errorf("invalid --snapshot-length %d: want at most %d", o.SnapLen, capture.MaxSnapLen)
	case o.fileSize > 0 && (o.file == "" || o.file == "-"):
		return errors.New("--file-size needs the name of a file: set --write")
	case o.files > 0 && o.fileSize == 0:
		return errors.New("--file-count needs --file-size")
	case o.file != "" && o.json:
		return errors.New("--write and --json exclude each other")
	}
	o.Memory = o.buffer << 20
	return nil
}

// captureSink receives the packets of weft capture.
type captureSink interface {
	Write(*capture.Record) error
	Flush() error
	Close() error
}

// run captures until ctx is done or the daemon ends.
func (o *captureOptions) run(ctx context.Context, out, problems io.Writer) (err error) {
	body, err := o.client().Stream(ctx, control.CapturePath, o.Values())
	if err != nil {
		return err
	}
	defer body.Close()
	reader, err := capture.NewReader(body)
	if err != nil {
		return err
	}
	missed := &missedCount{reader: reader}
	sink, err := o.newSink(out, missed)
	if err != nil {
		return err
	}
	n, err := copyRecords(sink, reader, missed)
	if ctx.Err() != nil || errors.Is(err, syscall.EPIPE) {
		err = nil // ended by the user, or by the reader of the output
	}
	err = errors.Join(err, sink.Close())
	fmt.Fprintf(problems, "weft capture: %d packets captured, %d missed\n", n, missed.total())
	return err
}

// copyRecords passes records on until the end and returns their number.
func copyRecords(sink captureSink, r *capture.Reader, missed *missedCount) (n int, err error) {
	for {
		rec, err := r.Read()
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
		n++
		missed.records += rec.Missed
		if err := sink.Write(&rec); err != nil {
			return n, err
		}
		if r.Buffered() == 0 {
			if err := sink.Flush(); err != nil {
				return n, err
			}
		}
	}
}

// missedCount knows the packets missed from two sources: the records, which are current, and the
// statistics, which know of packets missed after the last record.
type missedCount struct {
	reader  *capture.Reader
	records uint64
}

func (m *missedCount) total() uint64 {
	return max(m.records, m.reader.Missed(capture.Inner)+m.reader.Missed(capture.Outer))
}

func (o *captureOptions) newSink(out io.Writer, missed *missedCount) (captureSink, error) {
	file := capture.File{
		Application: "weft capture", Filter: o.Filter, SnapLen: capture.MaxSnapLen,
		Missed: missed.reader.Missed,
	}
	if o.SnapLen > 0 {
		file.SnapLen = o.SnapLen
	}
	switch o.file {
	case "":
		return &textSink{out: out, json: o.json}, nil
	case "-":
		return capture.NewWriter(out, file)
	}
	return newFileSink(o.file, int64(o.fileSize)*1e6, o.files, file)
}

// textSink prints a line per packet.
type textSink struct {
	out  io.Writer
	json bool
}

// Write prints a record.
func (s *textSink) Write(r *capture.Record) error {
	if r.Missed > 0 && !s.json {
		if _, err := fmt.Fprintf(s.out, "... %d packets missed\n", r.Missed); err != nil {
			return err
		}
	}
	if s.json {
		return writeJSONLine(s.out, r)
	}
	direction := "in "
	if r.Outbound {
		direction = "out"
	}
	_, err := fmt.Fprintf(s.out, "%s %s %s  %s  %s\n", r.Time.Local().Format("15:04:05.000000"),
		r.Point, direction, r.Text(), strings.TrimPrefix(r.Comment(), "direction="+strings.TrimSpace(direction)+" "))
	return err
}

// Flush does nothing: lines are not buffered.
func (s *textSink) Flush() error { return nil }

// Close does nothing.
func (s *textSink) Close() error { return nil }
