// Package report holds the result of a benchmark run and shows it.
//
//	Result    content of the JSON file: targets, samples, the host   (result.go, host.go)
//	Metric    name, unit and direction of a measured value           (metric.go)
//	Case      description of a workload                              (case.go)
//	HTML      a page with charts and details                         (html.go, report.html)
//	Markdown  a page with tables; Tables and Summary are parts of it (page.go, markdown.go)
//	Compare   the metrics that changed between two results           (compare.go)
//
// It measures nothing: package bench does.
package report
