package metrics

func deviceMetrics() []metric {
	labels := []string{"device", "direction"}
	return []metric{
		{Info{"weft_device_packets_total",
			"Packets of an overlay device of the kernel; a GSO frame counts once.",
			counter, labels},
			perDevice(func(d DeviceTraffic) (out, in uint64) { return d.Out.Packets, d.In.Packets })},
		{Info{"weft_device_bytes_total",
			"Bytes of an overlay device of the kernel.",
			counter, labels},
			perDevice(func(d DeviceTraffic) (out, in uint64) { return d.Out.Bytes, d.In.Bytes })},
		{Info{"weft_device_dropped_total",
			"Packets that an overlay device of the kernel dropped or found faulty.",
			counter, labels},
			perDevice(func(d DeviceTraffic) (out, in uint64) { return d.OutDropped, d.InDropped })},
	}
}

func perDevice(value func(DeviceTraffic) (out, in uint64)) func(*scrape) []sample {
	return func(s *scrape) []sample {
		if s.Kernel == nil {
			return nil
		}
		var samples []sample
		for _, d := range s.Kernel.Devices {
			out, in := value(d)
			samples = append(samples,
				sample{float64(out), []string{d.Device, "out"}},
				sample{float64(in), []string{d.Device, "in"}})
		}
		return samples
	}
}
