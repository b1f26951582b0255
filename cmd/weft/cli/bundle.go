package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"weft/cmd/buildinfo"
	"weft/cmd/control"
	"weft/ctrl/bundle"
	"weft/ctrl/doctor"
	"weft/dataplane/probe"
)

// newBundle returns weft bundle.
func newBundle(b buildinfo.Info) *cobra.Command {
	var (
		c    = asking{}
		file string
		logs []string
		unit string
		all  bool
		port uint16
		o    = doctor.Options{Probe: true, Priority: probe.WorkerPriority}
	)
	cmd := &cobra.Command{
		Use:   "bundle",
		Short: "write an archive for a bug report",
		Long: "Writes an archive for a bug report: status, metrics, the report of weft doctor, the kernel's\n" +
			"state, the subnet file and the CNI configuration; logs only if asked for. Passwords, tokens and\n" +
			"keys are hidden, addresses and names of nodes are not.",
		Args: Operands(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Status = c.rawStatus
			parts := append(nodeParts(&c, b, o), bundle.Kernel()...)
			for _, log := range logs {
				parts = append(parts, bundle.File(log))
			}
			if unit != "" {
				parts = append(parts, bundle.Program("journalctl --no-pager -n 20000 -u "+unit))
			}
			if all {
				parts = append(parts, clusterPart(&c, port))
			}
			return writeBundle(cmd, c.json, file, parts)
		},
	}
	c.register(cmd)
	cmd.Flags().BoolVar(&all, "all", false, "add the answers of all nodes of the cluster")
	cmd.Flags().Uint16Var(&port, "health-port", 0,
		"`port` of the nodes' health servers for --all (default: this node's)")
	cmd.Flags().StringVarP(&file, "output", "o", "", "`file` to write, - for the standard output (default weft-NODE-TIME.tar.gz)")
	cmd.Flags().StringArrayVar(&logs, "log", nil, "add this log `file`; repeatable")
	cmd.Flags().StringVar(&unit, "log-unit", "", "add the journal of this systemd `unit`")
	cmd.Flags().StringVar(&o.SubnetFile, "subnet-file", doctor.DefaultSubnetFile,
		"`path` of the daemon's subnet file")
	return cmd
}

// nodeParts returns the parts with the state of the daemon.
func nodeParts(a *asking, b buildinfo.Info, o doctor.Options) []bundle.Part {
	ask := func(path string) func(context.Context) ([]byte, error) {
		return func(ctx context.Context) ([]byte, error) {
			body, err := a.client().Stream(ctx, path, nil)
			if err != nil {
				return nil, err
			}
			defer body.Close()
			return io.ReadAll(body)
		}
	}
	parts := []bundle.Part{
		{Name: "version.txt", Read: func(context.Context) ([]byte, error) {
			return fmt.Appendf(nil, "weft %s commit %s %s\n", b.Version, b.Commit, b.GoVersion), nil
		}},
		{Name: "status.json", Read: ask(control.StatusPath)},
		{Name: "metrics.txt", Read: ask(control.MetricsPath)},
		{Name: "doctor.txt", Read: func(ctx context.Context) ([]byte, error) {
			var text bytes.Buffer
			err := doctor.Examine(doctor.Gather(ctx, o)).Text(&text, defaultWidth, true)
			return text.Bytes(), err
		}},
		bundle.File(o.SubnetFile),
	}
	configs, _ := filepath.Glob("/etc/cni/net.d/*") // the pattern is well formed
	for _, c := range configs {
		if info, err := os.Stat(c); err == nil && info.Mode().IsRegular() {
			parts = append(parts, bundle.File(c))
		}
	}
	return parts
}

// clusterPart returns the part with the answers of all nodes, as weft status --all --json.
func clusterPart(a *asking, port uint16) bundle.Part {
	return bundle.Part{Name: "cluster.json", Read: func(ctx context.Context) ([]byte, error) {
		self, err := a.client().Status(ctx)
		if err != nil {
			return nil, err
		}
		answers, err := clusterAnswers(ctx, port, self)
		if err != nil {
			return nil, err
		}
		var b bytes.Buffer
		err = WriteJSON(&b, answers)
		return b.Bytes(), err
	}}
}

// writeBundle writes the archive and lists the parts that could not be read.
func writeBundle(cmd *cobra.Command, asJSON bool, file string, parts []bundle.Part) (err error) {
	if asJSON && file == "-" {
		return usageError{cmd, errors.New("--json needs the name of a file: set --output")}
	}
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	name := fmt.Sprintf("weft-%s-%s", host, time.Now().UTC().Format("20060102T150405Z"))
	var w io.Writer = cmd.OutOrStdout()
	if file != "-" {
		if file == "" {
			file = name + ".tar.gz"
		}
		f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		defer func() {
			if closeErr := f.Close(); err == nil {
				err = closeErr
			}
		}()
		w = f
	}
	unread, err := bundle.Write(cmd.Context(), w, name, parts)
	if asJSON {
		result := struct {
			File   string   `json:"file"`
			Unread []string `json:"unread"`
		}{file, []string{}}
		for _, u := range unread {
			result.Unread = append(result.Unread, fmt.Sprint(u))
		}
		return errors.Join(err, WriteJSON(cmd.OutOrStdout(), result))
	}
	for _, u := range unread {
		fmt.Fprintln(cmd.ErrOrStderr(), "weft: not in the bundle:", u)
	}
	if err == nil && file != "-" {
		fmt.Fprintln(cmd.OutOrStdout(), file)
	}
	return err
}
