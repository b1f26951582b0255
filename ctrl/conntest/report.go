package conntest

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// Text prints the results as a table with a row per pair and family, and below it a line per
// distinct failure with its reason.
func Text(w io.Writer, results []Result) error {
	type row struct{ from, to, family string }
	outcomes := map[row]map[Check]Outcome{}
	var rows []row
	columns := slices.DeleteFunc(append(checks(), Service), func(c Check) bool {
		return !slices.ContainsFunc(results, func(r Result) bool { return r.Check == c })
	})
	for _, r := range results {
		key := row{r.From, r.To, r.Family}
		if outcomes[key] == nil {
			outcomes[key] = map[Check]Outcome{}
			rows = append(rows, key)
		}
		outcomes[key][r.Check] = r.Outcome
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(t, "FROM\tTO\tFAMILY")
	for _, c := range columns {
		fmt.Fprintf(t, "\t%s", strings.ToUpper(string(c)))
	}
	fmt.Fprintln(t)
	for _, key := range rows {
		fmt.Fprintf(t, "%s\t%s\t%s", key.from, key.to, key.family)
		for _, c := range columns {
			fmt.Fprintf(t, "\t%s", outcomes[key][c])
		}
		fmt.Fprintln(t)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	return writeReasons(w, results)
}

// writeReasons prints the reasons, one line for all checks of a row that share one.
func writeReasons(w io.Writer, results []Result) error {
	type failure struct{ from, to, family, reason string }
	failed := map[failure][]string{}
	var order []failure
	for _, r := range results {
		if r.Outcome == Passed {
			continue
		}
		key := failure{r.From, r.To, r.Family, r.Reason}
		if failed[key] == nil {
			order = append(order, key)
		}
		failed[key] = append(failed[key], string(r.Check))
	}
	if len(order) == 0 {
		_, err := fmt.Fprintf(w, "\nall %d checks passed\n", len(results))
		return err
	}
	fmt.Fprintln(w)
	for _, f := range order {
		_, err := fmt.Fprintf(w, "%s to %s, %s, %s: %s\n", f.from, f.to, f.family,
			strings.Join(failed[f], ", "), cmp.Or(f.reason, "unknown reason"))
		if err != nil {
			return err
		}
	}
	return nil
}
