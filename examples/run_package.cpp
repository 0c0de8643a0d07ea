// Runs the models of a package that sgc.package has written, of a program whose one argument is a vector of numbers:
//
//     ./run_package loss.pt2 0.3 -1.2 0.8 1.1
//
// Compile it with the headers and libraries of an installed torch:
//
//     torch=$(python -c 'import torch; print(torch.__path__[0])')
//     g++ -std=c++20 run_package.cpp -o run_package -I$torch/include -L$torch/lib -Wl,-rpath,$torch/lib \
//         -Wl,--no-as-needed -ltorch -ltorch_cpu -lc10

#include <ATen/ATen.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdlib>
#include <iostream>
#include <vector>

int main(int argc, char** argv) {
  std::vector<float> numbers;
  for (int i = 2; i < argc; ++i) {
    numbers.push_back(std::strtof(argv[i], nullptr));
  }
  std::vector<at::Tensor> call = {at::tensor(numbers)};  // the tensors among the arguments, in their order
  for (const char* model : {"loss", "gradient", "sample"}) {
    torch::inductor::AOTIModelPackageLoader loader(argv[1], model);
    at::manual_seed(1);
    std::cout << model << "\n";
    for (const at::Tensor& result : loader.run(call)) {  // the tensors among the results, in their order
      at::Tensor elements = result.to(at::kDouble).flatten();
      for (int64_t i = 0; i < elements.numel(); ++i) {
        std::cout << " " << elements[i].item<double>();
      }
      std::cout << "\n";
    }
  }
}
