package boxinit

import (
	"encoding/binary"
	"errors"

	"github.com/bailey-platform/bailey/sandbox/lockdown"
)

// Encode is the plan as [Decode] reads it. JSON would do, but that a program which reads
// it once takes longer to find out about its types than to make the root of the box.
func (p *Plan) Encode() []byte {
	var c coder
	c.plan(p)
	return c.data
}

// Decode reads a plan from what Encode has made of it.
func Decode(data []byte) (Plan, error) {
	var p Plan
	c := coder{data: data, reads: true}
	c.plan(&p)
	if !c.short && len(c.data) > 0 {
		return p, errors.New("a plan with something after it")
	}
	if c.short {
		return p, errors.New("a plan that is cut short")
	}
	return p, nil
}

// A coder writes what it is shown, or reads into it: numbers as varints, and whatever has
// a length after that.
type coder struct {
	data  []byte // written so far, or left to be read
	reads bool
	short bool // there was not enough to be read
}

func (c *coder) plan(p *Plan) {
	list(c, &p.Command, c.text)
	list(c, &p.Env, c.text)
	c.text(&p.Dir)
	number(c, &p.User)
	c.truth(&p.Change)
	c.text(&p.Hostname)
	number(c, &p.Root.Size)
	number(c, &p.Root.Files)
	list(c, &p.Root.Layers, c.mount)
	list(c, &p.Root.Mounts, c.mount)
	list(c, &p.Root.Devices, func(d *Device) {
		c.text(&d.Source)
		c.text(&d.Target)
	})
	number(c, &p.Root.Shared)
	table(c, &p.Root.Texts, c.text)
	number(c, &p.Limits.Processes)
	number(c, &p.Limits.OpenFiles)
	filter := string(p.Filter)
	c.text(&filter)
	p.Filter = []byte(filter)
	table(c, &p.Landlock.Paths, func(a *lockdown.Access) { number(c, a) })
	c.truth(&p.Landlock.NoTCP)
}

func (c *coder) mount(m *Mount) {
	c.text(&m.Source)
	c.text(&m.Target)
	c.truth(&m.File)
	c.truth(&m.Write)
}

func number[T ~int | ~int64 | ~uint64](c *coder, n *T) {
	if !c.reads {
		c.data = binary.AppendUvarint(c.data, uint64(*n))
		return
	}
	value, size := binary.Uvarint(c.data)
	if size <= 0 {
		c.data, c.short = nil, true
		return
	}
	*n, c.data = T(value), c.data[size:]
}

func (c *coder) truth(t *bool) {
	n := 0
	if *t {
		n = 1
	}
	number(c, &n)
	*t = n != 0
}

func (c *coder) text(t *string) {
	size := len(*t)
	number(c, &size)
	switch {
	case !c.reads:
		c.data = append(c.data, *t...)
	case size < 0 || size > len(c.data):
		c.data, c.short = nil, true
	default:
		*t, c.data = string(c.data[:size]), c.data[size:]
	}
}

func list[T any](c *coder, l *[]T, each func(*T)) {
	size := len(*l)
	number(c, &size)
	for i := 0; i < size && !c.short; i++ {
		if c.reads {
			*l = append(*l, *new(T))
		}
		each(&(*l)[i])
	}
}

func table[T any](c *coder, t *map[string]T, each func(*T)) {
	size := len(*t)
	number(c, &size)
	if c.reads {
		*t = make(map[string]T)
		for i := 0; i < size && !c.short; i++ {
			var key string
			var value T
			c.text(&key)
			each(&value)
			(*t)[key] = value
		}
		return
	}
	for key, value := range *t {
		c.text(&key)
		each(&value)
	}
}
