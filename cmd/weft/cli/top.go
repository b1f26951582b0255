package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	tea "charm.land/bubbletea/v2"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"weft/cmd/control"
)

const topHelp = `
Shows the traffic of this node once per second: in total, per node and per flow,
with drops by reason, packets per frame, and the round-trip times of the mesh
probe. Flows are estimated from a random sample of at most 20,000 packets per second,
of whatever carries them: workers, fast path or kernel. If the udp backend has a fast
path, KERNEL is its share of a node's bits, and WAY is the carrier of a flow: the kernel,
the workers or, since a flow may move, both. Keys:

    s  sort by rate, packets, name or round-trip time
    /  show only nodes and flows that contain a text, such as workers for their flows;
       Enter ends it, Esc clears it
    p  pause
    q  quit

On anything but a terminal, it prints lines instead.`

// newTop returns weft top.
func newTop() *cobra.Command {
	var a asking
	var count int
	cmd := &cobra.Command{
		Use:   "top",
		Short: "show the traffic of this node live, per node and per flow",
		Long:  strings.TrimSpace(topHelp),
		Args:  Operands(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if count < 0 {
				return usageError{cmd, fmt.Errorf("invalid --count %d: want 0 or more", count)}
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			body, err := a.client().Stream(ctx, control.TopPath, nil)
			if err != nil {
				return err
			}
			defer body.Close()
			out := cmd.OutOrStdout()
			if file, ok := out.(*os.File); ok && !a.json && count == 0 &&
				term.IsTerminal(int(file.Fd())) && term.IsTerminal(int(os.Stdin.Fd())) {
				return showTop(ctx, body)
			}
			return printTop(ctx, out, body, printing{json: a.json, count: count})
		},
	}
	a.register(cmd)
	cmd.Flags().IntVarP(&count, "count", "n", 0, "print so many times as lines, then end")
	return cmd
}

// printing says how printTop prints.
type printing struct {
	json  bool
	count int // 0 means without end
}

// printTop prints a block of lines per second until the stream ends or ctx is done.
func printTop(ctx context.Context, out io.Writer, stream io.Reader, p printing) error {
	decoder := json.NewDecoder(stream)
	m := topModel{width: plainWidth, height: plainHeight}
	for n := 0; p.count == 0 || n < p.count; {
		var t control.Top
		err := decoder.Decode(&t)
		if errors.Is(err, io.EOF) || ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", control.TopPath, err)
		}
		first := m.last.Time.IsZero()
		m = m.add(t)
		switch {
		case first: // rates need two
			continue
		case p.json:
			err = json.NewEncoder(out).Encode(t)
		default:
			_, err = fmt.Fprintf(out, "%s\n%s\n\n", t.Time.Local().Format("15:04:05"),
				strings.Join(m.lines(), "\n"))
		}
		if err != nil {
			return err
		}
		n++
	}
	return nil
}

// Size of the blocks of lines in characters.
const (
	plainWidth  = 120
	plainHeight = 24
)

// showTop shows the stream on the terminal until the user quits.
func showTop(ctx context.Context, stream io.Reader) error {
	program := tea.NewProgram(topScreen{}, tea.WithContext(ctx))
	go func() {
		decoder := json.NewDecoder(stream)
		for {
			var t control.Top
			if err := decoder.Decode(&t); err != nil {
				program.Send(err)
				return
			}
			program.Send(t)
		}
	}()
	last, err := program.Run()
	if errors.Is(err, tea.ErrProgramKilled) && ctx.Err() != nil {
		return nil // Ctrl-C from elsewhere
	}
	if screen, ok := last.(topScreen); ok && err == nil && screen.err != nil {
		err = fmt.Errorf("the daemon ended the stream: %w", screen.err)
	}
	return err
}

// topScreen is a topModel on the terminal.
type topScreen struct {
	topModel
	err error // of the stream
}

// Init does nothing.
func (s topScreen) Init() tea.Cmd { return nil }

// Update handles a key, a new size, a sample or the end of the stream.
func (s topScreen) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		s.width, s.height = msg.Width, msg.Height
	case tea.KeyPressMsg:
		var quit bool
		if s.topModel, quit = s.key(msg.String(), msg.Text); quit {
			return s, tea.Quit
		}
	case control.Top:
		s.topModel = s.add(msg)
	case error:
		s.err = msg
		return s, tea.Quit
	}
	return s, nil
}

// View returns the whole screen.
func (s topScreen) View() tea.View {
	lines := s.lines()
	for i, l := range lines {
		if i == 0 || strings.HasPrefix(l, nodeHeader) || strings.HasPrefix(l, flowHeader) {
			lines[i] = "\x1b[7m" + pad(l, s.width) + "\x1b[m"
		}
		if strings.Contains(l, dropMark) {
			lines[i] = "\x1b[31m" + l + "\x1b[m"
		}
	}
	v := tea.NewView(strings.Join(lines, "\n"))
	v.AltScreen = true
	return v
}
