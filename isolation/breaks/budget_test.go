package breaks

import (
	"fmt"
	"math"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for spec, want := range map[string][]Clause{
		"total=0":                    {{"total=0", "total", 0, false}},
		"syscall<=10/s,page-fault=0": {{"syscall<=10/s", "syscall", 10, true}, {"page-fault=0", "page-fault", 0, false}},
		" host-interrupt <= 0.5/s ":  {{"host-interrupt<=0.5/s", "host-interrupt", .5, true}},
		"lost<=50us/s,max<=20us":     {{"lost<=50us/s", "lost", 50e3, true}, {"max<=20us", "max", 20e3, false}},
		"lost=0,max=1.5ms":           {{"lost=0", "lost", 0, false}, {"max=1.5ms", "max", 1.5e6, false}},
		"exceptions=0,user=1,kernel<=2,unknown=0": {{"exceptions=0", "exceptions", 0, false}, {"user=1", "user", 1, false},
			{"kernel<=2", "kernel", 2, false}, {"unknown=0", "unknown", 0, false}},
		"syscall=5,syscall<=1/s": {{"syscall=5", "syscall", 5, false}, {"syscall<=1/s", "syscall", 1, true}},
	} {
		b, err := Parse(spec)
		if err != nil || b.Spec != spec || fmt.Sprint(b.Clauses) != fmt.Sprint(want) {
			t.Errorf("%q: %+v, %v; want %+v", spec, b.Clauses, err, want)
		}
	}
}

func TestParseNamesWhatIsWrong(t *testing.T) {
	for spec, want := range map[string]string{
		"":                         "empty",
		"  ":                       "empty",
		"total=0,":                 "empty clause",
		"total":                    `"total": no limit`,
		"total<1":                  `only "=" and "<="`,
		"total>=1":                 `only "=" and "<="`,
		"total==1":                 `"=1" is no count`,
		"total=-1":                 `"-1" is no count`,
		"total=1.5":                `"1.5" is no count`,
		"total=9007199254740993":   "is no count",
		"total=":                   `"" is no count`,
		"total<=1e3/s":             `"1e3/s" is no rate`,
		"total<=inf/s":             `"inf/s" is no rate`,
		"total<=0x10/s":            "is no rate",
		"total<=1/m":               `"1/m" is no count`,
		"total<=/s":                `"/s" is no rate`,
		"lost<=50":                 `"50" is no time`,
		"lost<=-1us":               `"-1us" is no time`,
		"lost<=+1us":               "is no time",
		"lost<=50us/m":             "is no time",
		"max<=20us/s":              "drop the /s",
		"seal=0":                   "never counts",
		"sycall=0":                 `unknown word "sycall"; valid: total, user, kernel, exceptions, lost, max, unknown, syscall,`,
		"=0":                       `unknown word ""`,
		"total=0,total<=3":         "total is limited twice",
		"syscall<=1/s,syscall=2/s": "limited twice",
		strings.Repeat("x", 5000):  "5000 bytes long",
	} {
		_, err := Parse(spec)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") || !strings.HasPrefix(err.Error(), "budget: ") {
			t.Errorf("%.40q: %v; want one line with %q", spec, err, want)
		}
	}
}

// hz makes a cycle a third of a nanosecond, so that a forgotten conversion shows.
const hz = 3_000_000_000

// sealedLedger is a vCPU that was sealed for some seconds and is still running.
func sealedLedger(seconds float64) *Counts {
	c := &Counts{TSCHz: hz, Start: 1, SealedAt: hz, Seals: 1}
	c.LastIn = c.SealedAt + uint64(seconds*hz)
	return c
}

func (c *Counts) spend(half int, cause Cause, n, each uint64) {
	b := &c.Book[half]
	b.Total += n
	b.Lost += n * each
	k := &b.Cause[cause]
	k.Count += n
	k.Lost += n * each
	k.Max = max(k.Max, each)
	i := 0
	for BucketBound(i) < each {
		i++
	}
	k.Hist[i] += n
}

func TestCheck(t *testing.T) {
	for _, x := range []struct {
		name    string
		spec    string
		seconds float64
		spend   func(*Counts)
		want    State
		left    int64
		why     string
	}{
		{"nothing spent", "total=0", 5, func(*Counts) {}, Kept, 0, ""},
		{"one system call", "total=0", 5, func(c *Counts) { c.spend(Sealed, Syscall, 1, 300) }, Broken, -1, "total=0: 1 in 5.00 s sealed, allowed 0, 1 too much"},
		{"open breaks are apart", "total=0", 5, func(c *Counts) { c.spend(Open, Syscall, 9, 300) }, Kept, 0, ""},
		{"planned ones never count", "total=0", 5, func(c *Counts) { c.spend(Sealed, End, 1, 300); c.spend(Sealed, Setup, 1, 1) }, Kept, 0, ""},
		{"the kernel's count in total", "total=0", 5, func(c *Counts) { c.Book[Sealed].Kernel[KernelExits], c.Book[Sealed].Kernel[KernelIRQ] = 1, 1 }, Broken, -1, ""},
		{"and not in user", "user=0", 5, func(c *Counts) { c.Book[Sealed].Kernel[KernelExits], c.Book[Sealed].Kernel[KernelIRQ] = 1, 1 }, Kept, 0, ""},
		{"and in kernel", "kernel<=3", 5, func(c *Counts) { c.Book[Sealed].Kernel[KernelExits], c.Book[Sealed].Kernel[KernelIRQ] = 5, 2 }, Broken, -2, "kernel<=3: 5 in"},
		{"one cause of the kernel's", "host-interrupt<=5/s", 2, func(c *Counts) { c.Book[Sealed].Kernel[KernelExits], c.Book[Sealed].Kernel[KernelIRQ] = 9, 9 }, Kept, 1, ""},
		{"a rate allows its number at once", "syscall<=10/s", .001, func(c *Counts) { c.spend(Sealed, Syscall, 10, 3) }, Kept, 0, ""},
		{"and no more", "syscall<=10/s", .001, func(c *Counts) { c.spend(Sealed, Syscall, 11, 3) }, Broken, -1, "allowed 10, 1 too much"},
		{"over a longer time", "syscall<=10/s", 2.55, func(c *Counts) { c.spend(Sealed, Syscall, 25, 3) }, Kept, 0, ""},
		{"over a longer time", "syscall<=10/s", 2.55, func(c *Counts) { c.spend(Sealed, Syscall, 26, 3) }, Broken, -1, "syscall<=10/s: 26 in 2.55 s sealed, allowed 25, 1 too much"},
		{"a slow rate", "syscall<=0.5/s", 4, func(c *Counts) { c.spend(Sealed, Syscall, 2, 3) }, Kept, 0, ""},
		{"a product a hair below its whole number", "syscall<=0.29/s", 100, func(c *Counts) { c.spend(Sealed, Syscall, 29, 3) }, Kept, 0, ""},
		{"exceptions", "exceptions=0", 1, func(c *Counts) { c.spend(Sealed, ExcSIMD, 1, 3) }, Broken, -1, ""},
		{"not an exception", "exceptions=0", 1, func(c *Counts) { c.spend(Sealed, PIO, 1, 3) }, Kept, 0, ""},
		{"time lost", "lost<=50us", 9, func(c *Counts) { c.spend(Sealed, Syscall, 2, 90_000) }, Broken, -10_000, "lost<=50us: 60.0 us in 9.00 s sealed, allowed 50.0 us, 10.0 us too much"},
		{"time lost a second", "lost<=50us/s", 2, func(c *Counts) { c.spend(Sealed, Syscall, 2, 90_000) }, Kept, 40_000, ""},
		{"longest", "max<=20us", 9, func(c *Counts) { c.spend(Sealed, Syscall, 99, 60_000) }, Kept, 0, ""},
		{"longest", "max<=20us", 9, func(c *Counts) { c.spend(Sealed, HLT, 1, 60_003) }, Broken, -1, "max<=20us: 20.0 us in"},
		{"the end is not the longest", "max=0", 9, func(c *Counts) { c.spend(Sealed, End, 1, 60_003) }, Kept, 0, ""},
		{"never sealed", "total=0", 0, func(c *Counts) { c.Seals, c.SealedAt = 0, 0 }, Untested, 0, "never sealed"},
		{"what is known breaks it", "total=0", 1, func(c *Counts) { c.Book[Sealed].Kernel[KernelEmulation] = 1 }, Broken, -1, ""},
		{"and leave it open", "total<=1", 1, func(c *Counts) { c.Book[Sealed].Kernel[KernelEmulation] = 1 }, Unjudged, 0, "0 exits, 1 fewer"},
		{"a counter of the kernel's own stands", "page-fault=0", 1, func(c *Counts) { c.Book[Sealed].Kernel[KernelEmulation] = 1 }, Kept, 0, ""},
		{"no frequency", "max=0", 1, func(c *Counts) { c.TSCHz = 0 }, Unjudged, 0, "frequency"},
		{"no frequency", "syscall<=1/s", 1, func(c *Counts) { c.TSCHz = 0 }, Unjudged, 1, "frequency"},
		{"a sum beyond 64 bits", "total=0", 1, func(c *Counts) { c.Book[Sealed].Cause[PIO].Count, c.Book[Sealed].Cause[HLT].Count = 1<<63, 1<<63 }, Broken, -math.MaxInt64, ""},
	} {
		t.Run(x.name, func(t *testing.T) {
			b, err := Parse(x.spec)
			if err != nil {
				t.Fatal(err)
			}
			b.Backend = BackendSVM
			c := sealedLedger(x.seconds)
			x.spend(c)
			// What the returns themselves cost, so that the kernel's half closes.
			if c.Book[Sealed].Kernel[KernelEmulation] == 0 {
				table, _ := tolls(BackendSVM)
				for cause, toll := range table {
					c.Book[Sealed].Kernel[KernelExits] += toll.exits * c.Book[Sealed].Cause[cause].Count
				}
			}
			v := b.Check(c, c.LastIn)
			k := v.Clauses[0]
			if v.State != x.want || k.State != x.want || k.Left != x.left || !strings.Contains(k.Why, x.why) {
				t.Errorf("%s: %+v; want %s, left %d, %q", x.spec, v, x.want, x.left, x.why)
			}
			if (len(v.BrokenBy()) > 0) != (x.want == Broken) {
				t.Errorf("broken by %q", v.BrokenBy())
			}
		})
	}
}

// One broken clause must not colour its neighbours, and makes the whole broken.
func TestCheckKeepsClausesApart(t *testing.T) {
	b, err := Parse("syscall=0,pio=0,transit=0")
	if err != nil {
		t.Fatal(err)
	}
	c := sealedLedger(1)
	c.spend(Sealed, Syscall, 1, 1)
	v := b.Check(c, c.LastIn)
	var states []State
	for _, k := range v.Clauses {
		states = append(states, k.State)
	}
	if fmt.Sprint(states) != "[broken kept unjudged]" || v.State != Broken {
		t.Errorf("%v %v", states, v.State)
	}
}

// The clock of the sealed interval runs while sealed only, and stands still when the run has ended.
func TestSealedFor(t *testing.T) {
	for _, x := range []struct {
		c    Counts
		now  uint64
		want uint64
	}{
		{Counts{}, 100, 0},
		{Counts{SealedIn: 7}, 100, 7},
		{Counts{SealedIn: 7, SealedAt: 90}, 100, 17},
		{Counts{SealedIn: 7, SealedAt: 90, End: 95}, 100, 12},
		{Counts{SealedIn: 7, SealedAt: 110}, 100, 7},
		{Counts{SealedIn: 7, SealedAt: 90, IdleAt: 93}, 100, 10},
		{Counts{SealedIn: 7, SealedAt: 90, IdleAt: 80}, 100, 7},
	} {
		if got := x.c.SealedFor(x.now); got != x.want {
			t.Errorf("%+v: %d, want %d", x, got, x.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"total=0", "syscall<=10/s,page-fault=0", "lost<=50us/s", "max<=20us", "a,b", "total<=0.5/s", "=,<=", "\xff=1", "lost<=9999999h"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, spec string) {
		b, err := Parse(spec)
		if err != nil {
			if strings.ContainsAny(err.Error(), "\n\r\x1b") || len(err.Error()) > 8*maxSpec {
				t.Errorf("%q: not one clean line: %q", spec, err)
			}
			return
		}
		c := sealedLedger(1.5)
		c.spend(Sealed, Syscall, 3, 1000)
		for _, backend := range []string{"", BackendPVM} {
			b.Backend = backend
			for _, k := range b.Check(c, c.LastIn).Clauses {
				if k.State == Broken != (k.Left < 0) {
					t.Errorf("%q: %+v", spec, k)
				}
			}
		}
		var texts []string
		for _, k := range b.Clauses {
			if math.IsNaN(k.Limit) || k.Limit < 0 {
				t.Errorf("%q: limit %v", spec, k.Limit)
			}
			texts = append(texts, k.Text)
		}
		again, err := Parse(strings.Join(texts, ","))
		if err != nil || fmt.Sprint(again.Clauses) != fmt.Sprint(b.Clauses) {
			t.Errorf("%q reads as %v, and its own clauses as %v, %v", spec, b.Clauses, again.Clauses, err)
		}
	})
}
