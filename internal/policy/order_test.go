package policy

import (
	"fmt"
	"go/ast"
	"go/token"
	"path"
	"regexp"
	"sort"
	"strings"
)

// The form of a tag (style of the whole project, docs/ordering.md):
//
//	// ORDER(O1) kick, requester side. Pairs with …; without it …
//	// ORDER(none): statistic …
var (
	orderTag  = regexp.MustCompile(`ORDER\(([^)\s]*)\)`)
	orderName = regexp.MustCompile(`^O[1-9][0-9]*$`)
	orderHead = regexp.MustCompile(`(?m)^## (O[1-9][0-9]*)\b`)

	// Assembly whose only purpose is order. CPUID and SERIALIZE order instruction fetch, but CPUID has
	// other uses, so it is left to review.
	orderAsm = regexp.MustCompile(`^\s*(LOCK|XCHG[BWLQ]|MFENCE|LFENCE|SFENCE|SERIALIZE)\b`)
)

const orderFile = "docs/ordering.md"

// checkOrderTags: a tag names a section that exists, its partner, and what breaks without it; and every
// section has code that carries its tag.
func checkOrderTags(t *tree) []string {
	var out []string
	sections := map[string]bool{}
	if _, ok := t.files[orderFile]; !ok {
		out = append(out, orderFile+": missing: one section `## On` per protocol")
	}
	for _, m := range orderHead.FindAllStringSubmatch(string(t.files[orderFile]), -1) {
		if sections[m[1]] {
			out = append(out, orderFile+": two sections "+m[1])
		}
		sections[m[1]] = true
	}
	used := map[string]bool{}
	for _, p := range t.text(".go", ".s", ".S", ".c", ".h") {
		if strings.HasPrefix(p, "internal/policy/") {
			continue
		}
		lines := strings.Split(string(t.files[p]), "\n")
		for i, line := range lines {
			for _, m := range orderTag.FindAllStringSubmatch(line, -1) {
				at := fmt.Sprintf("%s:%d: ORDER(%s)", p, i+1, m[1])
				said := strings.ToLower(comment(lines, i))
				switch {
				case m[1] == "none":
					if !regexp.MustCompile(`order\(none\):? *\w`).MatchString(said) {
						out = append(out, at+": say why no order is needed (\"statistic\")")
					}
				case !orderName.MatchString(m[1]):
					out = append(out, at+": want ORDER(On) with a number, or ORDER(none)")
				case !sections[m[1]]:
					out = append(out, at+": "+orderFile+" has no section `## "+m[1]+"`")
				case !strings.Contains(said, "pairs with") || !strings.Contains(said, "without"):
					out = append(out, at+": must say what it \"pairs with\" and what breaks \"without\" it")
				}
				used[m[1]] = true
			}
		}
	}
	for s := range sections {
		if !used[s] {
			out = append(out, fmt.Sprintf("%s: no code carries ORDER(%s)", orderFile, s))
		}
	}
	sort.Strings(out)
	return out
}

// comment gives the text of line i and of the comment lines around it, spaces squeezed.
func comment(lines []string, i int) string {
	is := func(j int) bool {
		if j < 0 || j >= len(lines) {
			return false
		}
		s := strings.TrimSpace(lines[j])
		return strings.HasPrefix(s, "//") || strings.HasPrefix(s, "*") || strings.HasPrefix(s, "/*") || strings.HasPrefix(s, "#")
	}
	from, to := i, i+1
	for is(from - 1) {
		from--
	}
	for is(to) {
		to++
	}
	var b strings.Builder
	for _, l := range lines[from:to] {
		b.WriteString(strings.TrimLeft(strings.TrimSpace(l), "/*# ") + " ")
	}
	return strings.Join(strings.Fields(b.String()), " ")
}

// checkOrderUses: every use of sync/atomic in the product, and every ordering instruction in assembly,
// stands under a tag. A function's tag (in its comment or body) covers its uses; the declaration of an
// atomic field or variable needs a tag of its own, and ORDER(none) there frees its uses.
func checkOrderUses(t *tree) []string {
	var out []string
	byDir := map[string][]string{}
	for _, p := range t.productGo() {
		byDir[path.Dir(p)] = append(byDir[path.Dir(p)], p)
	}
	for _, files := range byDir {
		names := map[string]bool{} // fields and variables of atomic type that order something
		for _, p := range files {
			out = append(out, t.atomicDecls(p, names)...)
		}
		for _, p := range files {
			out = append(out, t.atomicUses(p, names)...)
		}
	}
	for _, p := range t.text(".s", ".S") {
		lines := strings.Split(string(t.files[p]), "\n")
		for i, l := range lines {
			m := orderAsm.FindStringSubmatch(l)
			if m == nil {
				continue
			}
			near := strings.Join(lines[max(0, i-8):i+1], "\n")
			if !orderTag.MatchString(near) {
				out = append(out, fmt.Sprintf("%s:%d: %s without ORDER(On) in the eight lines above", p, i+1, m[1]))
			}
		}
	}
	sort.Strings(out)
	return out
}

// atomicName is the name by which a file calls sync/atomic, or "".
func atomicName(f *ast.File) string {
	for _, im := range f.Imports {
		if im.Path.Value == `"sync/atomic"` {
			if im.Name != nil {
				return im.Name.Name
			}
			return "atomic"
		}
	}
	return ""
}

func mentions(n ast.Node, pkg string) bool {
	found := false
	ast.Inspect(n, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok {
			if id, ok := s.X.(*ast.Ident); ok && id.Name == pkg {
				found = true
			}
		}
		return !found
	})
	return found
}

func (t *tree) atomicDecls(p string, names map[string]bool) (out []string) {
	f := t.ast(p)
	pkg := atomicName(f)
	if pkg == "" {
		return nil
	}
	// declare notes the names of one declaration of atomic type. said: the comments that may tag it.
	declare := func(n ast.Node, ids []*ast.Ident, said string) {
		if !orderTag.MatchString(said) {
			out = append(out, t.at(n)+": a declaration of atomic type needs ORDER(On) or ORDER(none)")
		}
		if !strings.Contains(said, "ORDER(none)") {
			for _, id := range ids {
				names[id.Name] = true
			}
		}
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			if n.Body != nil && !mentions(n.Type, pkg) {
				return false // its uses are atomicUses' business
			}
		case *ast.StructType:
			for _, fl := range n.Fields.List {
				if mentions(fl.Type, pkg) {
					declare(fl, fl.Names, fl.Doc.Text()+fl.Comment.Text())
				}
			}
			return false
		case *ast.GenDecl:
			if n.Tok != token.VAR {
				return true
			}
			for _, s := range n.Specs {
				if v := s.(*ast.ValueSpec); v.Type != nil && mentions(v.Type, pkg) {
					declare(v, v.Names, n.Doc.Text()+v.Doc.Text()+v.Comment.Text())
				}
			}
		}
		return true
	})
	return out
}

func (t *tree) atomicUses(p string, names map[string]bool) (out []string) {
	f := t.ast(p)
	pkg := atomicName(f)
	for _, d := range f.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok || fn.Body == nil {
			continue
		}
		tagged := orderTag.MatchString(fn.Doc.Text())
		for _, g := range f.Comments {
			if g.Pos() > fn.Pos() && g.End() < fn.End() {
				tagged = tagged || orderTag.MatchString(g.Text())
			}
		}
		if tagged {
			continue
		}
		if pkg != "" && mentions(fn.Type, pkg) {
			out = append(out, fmt.Sprintf("%s: %s takes an atomic and has no ORDER(On)", t.at(fn), fn.Name.Name))
		}
		ast.Inspect(fn.Body, func(n ast.Node) bool {
			s, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if id, ok := s.X.(*ast.Ident); ok && pkg != "" && id.Name == pkg {
				out = append(out, fmt.Sprintf("%s: %s.%s in a function without ORDER(On)", t.at(n), pkg, s.Sel.Name))
				return false
			}
			switch s.Sel.Name {
			case "Load", "Store", "Add", "Swap", "CompareAndSwap", "And", "Or":
				if name := lastName(s.X); names[name] {
					out = append(out, fmt.Sprintf("%s: %s.%s in a function without ORDER(On)", t.at(n), name, s.Sel.Name))
				}
			}
			return true
		})
	}
	return out
}

func lastName(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return e.Sel.Name
	case *ast.IndexExpr:
		return lastName(e.X)
	case *ast.ParenExpr:
		return lastName(e.X)
	}
	return ""
}
