// Exceptions through several frames, iostreams, containers, virtual calls, thread-local objects.
#include <algorithm>
#include <iomanip>
#include <iostream>
#include <map>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

struct Loud {
	std::string name;
	explicit Loud(std::string n) : name(std::move(n)) { std::cout << "+" << name << "\n"; }
	~Loud() { std::cout << "-" << name << std::endl; }
};
static Loud global("global");

struct Shape {
	virtual ~Shape() = default;
	virtual double area() const = 0;
};
struct Square : Shape {
	double a;
	explicit Square(double x) : a(x) {}
	double area() const override
	{
		if (a < 0)
			throw std::domain_error("a square of side " + std::to_string(a));
		return a * a;
	}
};

static double sum(const std::vector<std::unique_ptr<Shape>> &v)
{
	Loud here("sum");
	double s = 0;
	for (auto &x : v)
		s += x->area();
	return s;
}

int main(int argc, char **argv)
{
	std::map<std::string, int> words;
	std::string w;
	while (std::cin >> w)
		words[w]++;
	for (auto &[k, n] : words)
		std::cout << std::setw(12) << k << ' ' << n << '\n';
	std::vector<std::unique_ptr<Shape>> v;
	for (double a : {1.0, 2.5, 3.0})
		v.push_back(std::make_unique<Square>(a));
	std::cout << std::fixed << std::setprecision(3) << sum(v) << '\n';
	v.push_back(std::make_unique<Square>(-1));
	try {
		sum(v);
	} catch (const std::logic_error &e) {
		std::cout << "caught " << e.what() << '\n';
	}
	std::ostringstream o;
	o << std::hex << 3735928559u << ' ' << argc;
	std::cerr << o.str() << std::endl;
	if (argc > 1)
		throw std::runtime_error(argv[1]); // nobody catches it: abort
	return 3;
}
