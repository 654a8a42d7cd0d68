// threads.cpp: exceptions through frames and across threads, iostreams and files, std::thread, async, atomics, conditions.
#include <atomic>
#include <algorithm>
#include <condition_variable>
#include <deque>
#include <fstream>
#include <future>
#include <iomanip>
#include <iostream>
#include <map>
#include <mutex>
#include <new>
#include <numeric>
#include <regex>
#include <shared_mutex>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace {

struct Guard {
	std::ostream &to;
	int n;
	~Guard() { to << "unwound " << n << '\n'; }
};

void dive(std::ostream &to, int n)
{
	Guard g{to, n};
	if (n == 0)
		throw std::out_of_range("the bottom");
	try {
		dive(to, n - 1);
	} catch (const std::out_of_range &e) {
		if (n % 2)
			throw;
		std::throw_with_nested(std::runtime_error("level " + std::to_string(n)));
	}
}

void tell(std::ostream &to, const std::exception &e, int depth = 0)
{
	to << std::string(depth, ' ') << e.what() << '\n';
	try {
		std::rethrow_if_nested(e);
	} catch (const std::exception &inner) {
		tell(to, inner, depth + 1);
	}
}

void exceptions()
{
	std::ostringstream log;
	try {
		dive(log, 5);
	} catch (const std::exception &e) {
		tell(log, e);
	}
	try {
		std::vector<int> v(3);
		v.at(7) = 1;
	} catch (const std::exception &e) {
		log << e.what() << '\n';
	}
	try {
		volatile std::size_t much = std::size_t(1) << 62;
		std::vector<char> v(much);
		log << v.size() << '\n';
	} catch (const std::bad_alloc &e) {
		log << e.what() << '\n';
	}
	std::cout << log.str();
	// Thrown and caught in many threads at once.
	std::atomic<long> caught{0};
	std::vector<std::thread> crew;
	for (int t = 0; t < 8; t++)
		crew.emplace_back([&caught, t] {
			for (int i = 0; i < 2000; i++)
				try {
					std::ostringstream mute;
					dive(mute, 1 + (i + t) % 4);
				} catch (const std::exception &) {
					caught.fetch_add(1, std::memory_order_relaxed);
				}
		});
	for (auto &c : crew)
		c.join();
	std::cout << "caught " << caught << '\n';
}

void streams(const std::string &file)
{
	{
		std::ofstream f(file);
		f << std::hex << std::showbase << 255 << ' ' << std::setw(12) << std::setfill('*') << std::fixed << std::setprecision(4) << 3.14159265 << '\n';
		for (int i = 0; i < 50000; i++)
			f << std::dec << i << (i % 10 == 9 ? '\n' : ' ');
	}
	std::ifstream f(file);
	std::string line;
	std::getline(f, line);
	long sum = 0, n = 0;
	for (long v; f >> v; n++)
		sum += v;
	std::cout << line << " then " << n << " numbers, sum " << sum << ", eof " << f.eof() << '\n';
	f.clear();
	f.seekg(-6, std::ios::end);
	std::getline(f, line);
	std::cout << "last '" << line << "'\n";
	std::ifstream none(file + ".nothere");
	std::cout << "missing: " << none.is_open() << '\n';
	std::istringstream in("x=1, yy=22, zzz=333");
	std::string text = in.str();
	std::regex pair(R"((\w+)=(\d+))");
	for (std::sregex_iterator i(text.begin(), text.end(), pair), end; i != end; ++i)
		std::cout << (*i)[1] << "->" << (*i)[2] << '\n';
	for (std::string word; std::cin >> word;)
		std::cout << std::quoted(word) << '\n';
}

void threads()
{
	std::vector<std::future<unsigned long>> parts;
	for (unsigned p = 0; p < 12; p++)
		parts.push_back(std::async(std::launch::async, [p] {
			unsigned long s = 0;
			for (unsigned long i = p; i < 3000000; i += 12)
				s += i * i % 1000003;
			return s;
		}));
	unsigned long s = 0;
	for (auto &p : parts)
		s += p.get();
	std::cout << "async " << s << '\n';
	auto broken = std::async(std::launch::async, []() -> int { throw std::logic_error("thrown in another thread"); });
	try {
		broken.get();
	} catch (const std::exception &e) {
		std::cout << e.what() << '\n';
	}

	std::mutex m;
	std::condition_variable some, room;
	std::deque<int> queue;
	std::atomic<long> total{0};
	std::atomic_flag spin = ATOMIC_FLAG_INIT;
	long plain = 0;
	std::vector<std::thread> crew;
	for (int c = 0; c < 4; c++)
		crew.emplace_back([&] {
			for (;;) {
				std::unique_lock<std::mutex> l(m);
				some.wait(l, [&] { return !queue.empty(); });
				int v = queue.front();
				queue.pop_front();
				room.notify_one();
				if (v < 0)
					return;
				l.unlock();
				total += v;
				while (spin.test_and_set(std::memory_order_acquire))
					std::this_thread::yield();
				plain += v;
				spin.clear(std::memory_order_release);
			}
		});
	for (int i = 0; i < 20000 + 4; i++) {
		std::unique_lock<std::mutex> l(m);
		room.wait(l, [&] { return queue.size() < 64; });
		queue.push_back(i < 20000 ? i : -1);
		some.notify_one();
	}
	for (auto &c : crew)
		c.join();
	std::cout << "queue " << total << ' ' << plain << '\n';

	std::shared_mutex rw;
	std::map<int, int> table;
	std::once_flag once;
	static thread_local int mine = 0;
	crew.clear();
	std::atomic<int> sum{0};
	for (int t = 0; t < 6; t++)
		crew.emplace_back([&, t] {
			std::call_once(once, [] { std::cout << "once\n"; });
			for (int i = 0; i < 3000; i++) {
				mine++;
				if (i % 10 == 0) {
					std::unique_lock<std::shared_mutex> l(rw);
					table[t * 10000 + i]++;
				} else {
					std::shared_lock<std::shared_mutex> l(rw);
					table.count(i);
				}
			}
			sum += mine;
		});
	for (auto &c : crew)
		c.join();
	std::cout << "table " << table.size() << " mine " << mine << " theirs " << sum << '\n';
	std::cv_status late;
	{
		std::unique_lock<std::mutex> l(m);
		late = some.wait_for(l, std::chrono::milliseconds(20));
	}
	std::cout << "timed out " << (late == std::cv_status::timeout) << '\n';
}

} // namespace

int main(int argc, char **argv)
{
	if (argc == 2 && std::string(argv[1]) == "uncaught")
		std::thread([] { throw 42; }).join();
	if (argc != 2)
		return 2;
	exceptions();
	streams(argv[1]);
	threads();
	std::cerr << "done" << std::endl;
	return 7;
}
