package checksum

import "golang.org/x/sys/cpu"

func assembly() []routine {
	r := routine{name: "AVX2", sum: sumAVX2, copy: copySumAVX2}
	if !cpu.X86.HasAVX2 {
		r.needs = "AVX2"
	}
	return []routine{r}
}
