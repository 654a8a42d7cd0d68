package observe

import (
	"errors"
	"io"
	"strings"
)

// Control sequences (ECMA-48, and DEC's private modes as xterm's ctlseqs documents them).
const (
	enterScreen = "\x1b[?1049h\x1b[?25l" // the alternate screen, no cursor
	leaveScreen = "\x1b[?25h\x1b[?1049l"
	home        = "\x1b[H"
	eraseRight  = "\x1b[K"
	eraseBelow  = "\x1b[J"
)

// Screen redraws a text in place, as top(1) does. It changes no terminal mode but two that Close undoes.
type Screen struct {
	w    io.Writer
	size func() (columns, rows int)
}

// OpenScreen takes the terminal behind w. size is asked before each frame; 0 means not known.
func OpenScreen(w io.Writer, size func() (columns, rows int)) (*Screen, error) {
	_, err := io.WriteString(w, enterScreen)
	return &Screen{w, size}, err
}

// Draw shows one frame, in one write so that it does not flicker. What does not fit is cut off.
func (s *Screen) Draw(text string) error {
	columns, rows := s.size()
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	if rows > 0 && len(lines) > rows {
		lines = lines[:rows]
	}
	var b strings.Builder
	b.WriteString(home)
	for i, l := range lines {
		if i > 0 {
			b.WriteString("\r\n")
		}
		if r := []rune(l); columns > 0 && len(r) > columns {
			l = string(r[:columns])
		}
		b.WriteString(l)
		b.WriteString(eraseRight)
	}
	b.WriteString(eraseBelow)
	_, err := io.WriteString(s.w, b.String())
	return err
}

// Close gives the terminal back, and passes on err.
func (s *Screen) Close(err error) error {
	_, e := io.WriteString(s.w, leaveScreen)
	return errors.Join(err, e)
}
