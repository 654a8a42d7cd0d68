package policy

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/token"
	"path"
	"slices"
	"strings"
)

// maxLines is the length from which a file is asked whether it holds two ideas.
const maxLines = 600

// checkShape: short files, and no folder whose name says only that somebody did not know where to put it.
func checkShape(t *tree) []string {
	var out []string
	for _, p := range t.productGo() {
		if n := bytes.Count(t.files[p], []byte("\n")); n > maxLines {
			out = append(out, fmt.Sprintf("%s: %d lines, more than %d: perhaps two ideas", p, n, maxLines))
		}
		for _, part := range strings.Split(path.Dir(p), "/") {
			if slices.Contains([]string{"util", "utils", "common", "helper", "helpers", "misc", "shared"}, part) {
				out = append(out, fmt.Sprintf("%s: a folder %s: name what it is for", p, part))
			}
		}
	}
	return out
}

// checkErrors: an error or a panic is thrown away only with the reason beside it, and only main packages
// end the process.
func checkErrors(t *tree) []string {
	var out []string
	for _, p := range t.productGo() {
		f := t.ast(p)
		commented := map[int]bool{}
		for _, g := range f.Comments {
			for l := t.fset.Position(g.Pos()).Line; l <= t.fset.Position(g.End()).Line; l++ {
				commented[l] = true
			}
		}
		reasoned := func(n ast.Node) bool {
			l := t.fset.Position(n.Pos()).Line
			return commented[l] || commented[l-1]
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.AssignStmt:
				blank := len(n.Rhs) == 1
				for _, l := range n.Lhs {
					id, ok := l.(*ast.Ident)
					blank = blank && ok && id.Name == "_"
				}
				if blank && n.Tok == token.ASSIGN && !reasoned(n) {
					if _, ok := n.Rhs[0].(*ast.CallExpr); ok {
						out = append(out, t.at(n)+": a result is thrown away without a word why")
					}
				}
			case *ast.CallExpr:
				if id, ok := n.Fun.(*ast.Ident); ok && id.Name == "panic" && !reasoned(n) {
					out = append(out, t.at(n)+": panic: return an error, or say beside it why this cannot be reached by input")
				}
				if s, ok := n.Fun.(*ast.SelectorExpr); ok && s.Sel.Name == "Exit" && f.Name.Name != "main" {
					if id, ok := s.X.(*ast.Ident); ok && id.Name == "os" && !reasoned(n) {
						out = append(out, t.at(n)+": os.Exit outside a main package: return an error")
					}
				}
			}
			return true
		})
	}
	return out
}

// checkDocComments: every exported name says what it is, its units and ranges. A comment on a group of
// constants or variables, or at the end of the line, counts.
func checkDocComments(t *tree) []string {
	var out []string
	for _, p := range t.productGo() {
		f := t.ast(p)
		if f.Name.Name == "main" {
			continue
		}
		say := func(n ast.Node, name string) {
			out = append(out, t.at(n)+": exported "+name+" has no doc comment")
		}
		for _, d := range f.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Doc == nil && d.Name.IsExported() && exportedReceiver(d) && !wellKnown[d.Name.Name] {
					say(d, d.Name.Name)
				}
			case *ast.GenDecl:
				for _, s := range d.Specs {
					switch s := s.(type) {
					case *ast.TypeSpec:
						if s.Name.IsExported() && s.Doc == nil && d.Doc == nil && s.Comment == nil {
							say(s, s.Name.Name)
						}
					case *ast.ValueSpec:
						if s.Names[0].IsExported() && s.Doc == nil && d.Doc == nil && s.Comment == nil {
							say(s, s.Names[0].Name)
						}
					}
				}
			}
		}
	}
	return out
}

// wellKnown methods mean what the standard library's interface of that name says.
var wellKnown = map[string]bool{"String": true, "Error": true, "Unwrap": true, "Is": true, "As": true, "Len": true, "Less": true,
	"Swap": true, "MarshalJSON": true, "UnmarshalJSON": true, "MarshalText": true, "UnmarshalText": true, "Describe": true, "Collect": true}

func exportedReceiver(d *ast.FuncDecl) bool {
	if d.Recv == nil || len(d.Recv.List) == 0 {
		return true
	}
	e := d.Recv.List[0].Type
	for {
		switch x := e.(type) {
		case *ast.StarExpr:
			e = x.X
		case *ast.IndexExpr:
			e = x.X
		case *ast.Ident:
			return x.IsExported()
		default:
			return true
		}
	}
}
