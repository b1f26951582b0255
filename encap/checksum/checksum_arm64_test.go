package checksum

import "golang.org/x/sys/cpu"

func assembly() []routine {
	r := routine{name: "NEON", sum: sumNEON, copy: copySumNEON}
	if !cpu.ARM64.HasASIMD {
		r.needs = "ASIMD"
	}
	return []routine{r}
}
