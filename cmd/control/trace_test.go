package control

import (
	"net/url"
	"reflect"
	"testing"
)

func TestWatchParameters(t *testing.T) {
	w := Watch{IPv6: true, Marks: [][]byte{make([]byte, 16), []byte("12345678")}, Lengths: []int{101, 129}}
	if got, err := ParseWatch(w.Values()); err != nil || !reflect.DeepEqual(got, w) {
		t.Errorf("got %+v, %v", got, err)
	}
	for _, query := range []string{"", "mark=0011223344556677", "length=100", "mark=00&length=100", "mark=zz&length=100",
		"mark=0011223344556677&length=7", "mark=0011223344556677&length=513", "mark=0011223344556677&length=x",
		"mark=0011223344556677&mark=0011223344556677&mark=0011223344556677&length=100",
		"mark=0011223344556677&length=100&length=100&length=100&length=100&length=100",
		"mark=0011223344556677&length=100&ipv6=maybe",
	} {
		v, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ParseWatch(v); err == nil {
			t.Errorf("%q: %+v", query, got)
		}
	}
}

// FuzzParseWatch checks the bounds of what a client of the health port can ask for.
func FuzzParseWatch(f *testing.F) {
	f.Add("mark=0011223344556677&length=100")
	f.Fuzz(func(t *testing.T, query string) {
		v, err := url.ParseQuery(query)
		if err != nil {
			return
		}
		w, err := ParseWatch(v)
		if err == nil && (len(w.Marks) > maxMarks || len(w.Lengths) > maxLengths || len(w.Marks[0]) < minMark) {
			t.Errorf("%q: %+v", query, w)
		}
	})
}
