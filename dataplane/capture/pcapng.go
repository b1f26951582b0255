package capture

import (
	"bufio"
	"fmt"
	"io"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

// Writer is a Sink that writes pcapng: an interface per point, packets with comments, and
// statistics of the packets missed.
type Writer struct {
	w       *pcapgo.NgWriter
	missed  func(Point) uint64
	stated  time.Time // of the last statistics
	written [numPoints]uint64
}

// File describes a pcapng file.
type File struct {
	Application string             // name of the program that writes it
	Filter      string             // expression of the filter
	SnapLen     int                // bytes recorded per packet
	Missed      func(Point) uint64 // returns the packets missed so far
}

// File returns a description of a file for the records of the session.
func (s *Session) File(application string) File {
	return File{Application: application, Filter: s.options.Filter.String(),
		SnapLen: s.options.SnapLen, Missed: s.Missed}
}

// NewWriter writes the beginning of a file to w and returns a writer for the records.
func NewWriter(w io.Writer, f File) (*Writer, error) {
	ng, err := pcapgo.NewNgWriterInterface(w, f.iface(Inner), pcapgo.NgWriterOptions{
		SectionInfo: pcapgo.NgSectionInfo{OS: "Linux", Application: f.Application},
	})
	if err == nil {
		_, err = ng.AddInterface(f.iface(Outer))
	}
	if err == nil {
		err = ng.Flush()
	}
	if err != nil {
		return nil, fmt.Errorf("write capture: %w", err)
	}
	return &Writer{w: ng, missed: f.Missed, stated: time.Now()}, nil
}

func (f *File) iface(p Point) pcapgo.NgInterface {
	description := "inner packets of the overlay"
	if p == Outer {
		description = "datagrams of the underlay; outer headers are rebuilt"
	}
	return pcapgo.NgInterface{
		Name: p.String(), LinkType: layers.LinkTypeRaw, Description: description,
		Filter: f.Filter, SnapLength: uint32(f.SnapLen), TimestampResolution: 9,
	}
}

// Write writes a record.
func (w *Writer) Write(r *Record) error {
	w.written[r.Point]++
	options := pcapgo.NgPacketOptions{Comments: []string{r.Comment()}}
	direction := pcapgo.NgEpbFlagDirectionInbound
	if r.Outbound {
		direction = pcapgo.NgEpbFlagDirectionOutbound
	}
	options.Flags = &pcapgo.NgEpbFlags{Direction: direction}
	if r.Missed > 0 {
		options.DropCount = &r.Missed
	}
	return w.w.WritePacketWithOptions(gopacket.CaptureInfo{
		Timestamp:      r.Time,
		CaptureLength:  len(r.Bytes),
		Length:         r.Length,
		InterfaceIndex: int(r.Point),
	}, r.Bytes, options)
}

// Flush passes all buffered bytes on, once per second with statistics.
func (w *Writer) Flush() error {
	if now := time.Now(); now.Sub(w.stated) >= flushInterval {
		return w.flushStats(now)
	}
	return w.w.Flush()
}

// Close ends the file with statistics. It does not close the underlying writer.
func (w *Writer) Close() error { return w.flushStats(time.Now()) }

func (w *Writer) flushStats(now time.Time) error {
	w.stated = now
	for p := range numPoints {
		if err := w.w.WriteInterfaceStats(int(p), pcapgo.NgInterfaceStatistics{
			LastUpdate:      now,
			PacketsReceived: w.written[p] + w.missed(p),
			PacketsDropped:  w.missed(p),
		}); err != nil {
			return err
		}
	}
	return w.w.Flush()
}

// Reader reads a file that a Writer has written, also while it is being written.
type Reader struct {
	r      *pcapgo.NgReader
	buffer *bufio.Reader
	missed [numPoints]uint64
}

// readBuffer is the size of a Reader's buffer in bytes, enough for the largest packet.
const readBuffer = 2 * MaxSnapLen

// NewReader reads the beginning of a file.
func NewReader(r io.Reader) (*Reader, error) {
	reader := &Reader{buffer: bufio.NewReaderSize(r, readBuffer)}
	options := pcapgo.DefaultNgReaderOptions
	options.StatisticsCallback = func(i int, s pcapgo.NgInterfaceStatistics) {
		if i < int(numPoints) && s.PacketsDropped != pcapgo.NgNoValue64 {
			reader.missed[i] = s.PacketsDropped
		}
	}
	var err error
	if reader.r, err = pcapgo.NewNgReader(reader.buffer, options); err != nil {
		return nil, fmt.Errorf("read capture: %w", err)
	}
	return reader, nil
}

// Missed returns the packets of a point that the writer has missed, as of its last statistics.
func (r *Reader) Missed(p Point) uint64 { return r.missed[p] }

// Buffered returns the number of bytes that can be read without waiting.
func (r *Reader) Buffered() int { return r.buffer.Buffered() }

// Read returns the next record. Its bytes belong to the caller. At the end of the file the error is
// io.EOF.
func (r *Reader) Read() (Record, error) {
	bytes, info, options, err := r.r.ReadPacketDataWithOptions()
	if err != nil {
		if err != io.EOF {
			err = fmt.Errorf("read capture: %w", err)
		}
		return Record{}, err
	}
	rec := Record{Point: Point(info.InterfaceIndex), Length: info.Length, Bytes: bytes}
	rec.Time = info.Timestamp
	for _, c := range options.Comments {
		rec.parseComment(c)
	}
	if options.DropCount != nil {
		rec.Missed = *options.DropCount
	}
	return rec, nil
}
